"""Known mistakes, each put into a copy of the library to see which test notices it."""
