"""Convolution with 3x3 kernels by Winograd's minimal filtering: F(m x m, 3x3), m 2 or 4.

A tile of m x m outputs needs t = m + 2 pixels a side. In the transform of Toom and Cook its
convolution is a product element by element, t * t of them for m * m * 9 multiplications: 4 times
fewer for m = 4, 2.25 times for m = 2. Over channels and tiles these are t * t matrix products.
With d a tile of the input and g a kernel

    y = A' [(G g G') * (B' d B)] A

Lavin, Gray, "Fast algorithms for convolutional neural networks", 2016. The price is rounding: in
float32 F(4x4) errs by about 1e-5 of the largest output where im2col errs by 1e-6.
"""

from __future__ import annotations

from collections.abc import Callable

from ..backend import Array, Backend
from .geometry import Window
from .types import Done, Emit, Into, Take
from .winograd_tiles import Minimal, Tiles, transposed

__all__ = ["Winograd"]


class Winograd:
    """Convolution by tiles of m x m outputs: see the module. One group, `Window.is_3x3`."""

    def __init__(self, m: int) -> None:
        self.minimal = Minimal(m)

    def forward(
        self, be: Backend, x: Array, w: Array, window: Window, groups: int, into: Into, done: Done
    ) -> None:
        """`(N, H, W, C)` and `(O, 3, 3, C)` to `(N, OH, OW, O)`."""
        tiles = Tiles(be, self.minimal, x, w, window)
        u = tiles.transformed_weights(w)

        def body(images: slice) -> None:
            staged = tiles.staged(x[images, ...])
            maps = into(images)
            for rows in tiles.row_parts(staged.shape[0]):
                v = tiles.transform("tiles", staged, rows, self.minimal.data)
                product = be.workspace("spare", (*v.shape[:2], u.shape[2]), x.dtype)
                be.matmul(v, u, out=product)
                tiles.place(product, maps, rows)
            done(images, maps)

        if not tiles.heavy:
            be.blocks(x.shape[0], tiles.image_bytes, body)
            return
        for some in tiles.groups():
            v = tiles.transform_all(some, x, tiles.staged, self.minimal.data)
            product = be.matmul(v, u)

            def finish(part: slice, first: int = some.start, product: Array = product) -> None:
                images = slice(first + part.start, first + part.stop)
                maps = into(images)
                tiles.place(product[:, tiles.of(part), :], maps, slice(0, tiles.down))
                done(images, maps)

            be.blocks(some.stop - some.start, tiles.image_bytes, finish)

    def gradients(
        self,
        be: Backend,
        x: Array,
        gy: Take,
        w: Array,
        window: Window,
        groups: int,
        needs: tuple[bool, bool, bool],
    ) -> tuple[Array | None, Array | None, Array | None]:
        """Of the input, the weight and the bias, in one pass over the tiles of gy.

        With `h = A gy A'` a transformed tile of gy, the weight's is `G' [sum of (B' d B) * h] G`
        and the input's the sum of the tiles `B [(G g G') * h] B'`, which overlap.
        """
        tiles = Tiles(be, self.minimal, x, w, window)
        spread = transposed(self.minimal.inverse)
        gx = be.empty(tuple(x.shape), x.dtype) if needs[0] else None
        back = tiles.weights_back(w) if needs[0] else None
        if tiles.heavy:
            total, gb = self._heavy_gradients(tiles, x, gy, gx, back, needs)
            return gx, None if total is None else tiles.weight_gradient(total), gb

        def body(images: slice, sums: list[Array], accumulate: bool) -> None:
            given = gy(images)
            if needs[2]:
                tiles.add_bias_gradient(given, sums[-1], accumulate)
            grads = tiles.staged_gradient(given)
            part = _Part(tiles, x[images, ...], gx, images, needs)
            for rows in tiles.row_parts(grads.shape[0]):
                h = tiles.transform("gradients", grads, rows, spread)
                part.add(h, back, rows, sums, accumulate or rows.start > 0)
            part.write()

        return self._reduced(tiles, x, gx, body, needs)

    def sorts(self, be: Backend, x: Array, w: Array, window: Window, by: tuple[int, ...]) -> bool:
        """If the outputs are whole tiles and a tile whole windows of the pooling."""
        m = self.minimal.m
        whole = all(size % m == 0 and m % b == 0 for size, b in zip(window.out, by, strict=True))
        return whole and not Tiles(be, self.minimal, x, w, window).heavy

    def forward_by_tap(
        self, be: Backend, x: Array, w: Array, window: Window, by: tuple[int, ...], emit: Emit
    ) -> None:
        """The outputs as they come out of the tiles, sorted by their place under the pooling."""
        tiles = Tiles(be, self.minimal, x, w, window)
        u = tiles.transformed_weights(w)
        rows = slice(0, tiles.down)

        def body(images: slice) -> None:
            staged = tiles.staged(x[images, ...])
            v = tiles.transform("tiles", staged, rows, self.minimal.data)
            product = be.workspace("spare", (*v.shape[:2], u.shape[2]), x.dtype)
            be.matmul(v, u, out=product)
            planes = tiles.planes(product)
            emit(images, tiles.taps(planes, by), lambda maps: tiles.order(maps, by))

        be.blocks(x.shape[0], tiles.image_bytes, body)

    def gradients_by_tap(
        self,
        be: Backend,
        x: Array,
        emit: Emit,
        w: Array,
        window: Window,
        by: tuple[int, ...],
        needs: tuple[bool, bool, bool],
    ) -> tuple[Array | None, Array | None, Array | None]:
        """As `gradients`, from planes of the tiles that `emit` fills tap by tap."""
        tiles = Tiles(be, self.minimal, x, w, window)
        gx = be.empty(tuple(x.shape), x.dtype) if needs[0] else None
        back = tiles.weights_back(w) if needs[0] else None
        rows = slice(0, tiles.down)

        def body(images: slice, sums: list[Array], accumulate: bool) -> None:
            planes = tiles.empty_planes(images.stop - images.start)
            emit(images, tiles.taps(planes, by), lambda maps: tiles.order(maps, by))
            if needs[2]:
                tiles.add_bias_gradient(planes, sums[-1], accumulate)
            part = _Part(tiles, x[images, ...], gx, images, needs)
            part.add(tiles.from_planes(planes), back, rows, sums, accumulate)
            part.write()

        return self._reduced(tiles, x, gx, body, needs)

    def _reduced(
        self,
        tiles: Tiles,
        x: Array,
        gx: Array | None,
        body: Callable[[slice, list[Array], bool], None],
        needs: tuple[bool, bool, bool],
    ) -> tuple[Array | None, Array | None, Array | None]:
        shapes: list[tuple[int, ...]] = []
        if needs[1]:
            shapes.append((tiles.side**2, tiles.outputs, tiles.channels))
        if needs[2]:
            shapes.append((tiles.outputs,))
        be = tiles.be
        found = be.reduce_blocks(x.shape[0], tiles.image_bytes, shapes, x.dtype, body)
        gw = tiles.weight_gradient(found[0]) if needs[1] else None
        return gx, gw, found[-1] if needs[2] else None

    def _heavy_gradients(
        self,
        tiles: Tiles,
        x: Array,
        gy: Take,
        gx: Array | None,
        back: Array | None,
        needs: tuple[bool, bool, bool],
    ) -> tuple[Array | None, Array | None]:
        """Write the input's gradient; return those of the transformed weights and of the bias."""
        be = tiles.be
        spread = transposed(self.minimal.inverse)
        total = gb = None
        for some in tiles.groups():
            given = be.empty((some.stop - some.start, *tiles.window.out, tiles.outputs), x.dtype)
            first = some.start

            def collect(part: slice, first: int = first, given: Array = given) -> None:
                images = slice(first + part.start, first + part.stop)
                be.assign(given[part, ...], gy(images))

            be.blocks(given.shape[0], tiles.image_bytes, collect)
            if needs[2]:
                gb = be.empty((tiles.outputs,), x.dtype) if gb is None else gb
                tiles.add_bias_gradient(given, gb, first > 0)
            whole = slice(0, given.shape[0])
            h = tiles.transform_all(whole, given, tiles.staged_gradient, spread)
            if needs[1]:
                v = tiles.transform_all(some, x, tiles.staged, self.minimal.data)
                if total is None:
                    total = be.empty((tiles.side**2, tiles.outputs, x.shape[3]), x.dtype)
                be.matmul(be.permute(h, (0, 2, 1)), v, out=total, accumulate=first > 0)
            if gx is None:
                continue
            product = be.matmul(h, back)

            def finish(part: slice, first: int = first, product: Array = product) -> None:
                frame = tiles.frame(part.stop - part.start)
                tiles.add(product[:, tiles.of(part), :], frame, slice(0, tiles.down))
                tiles.write(frame, gx[first + part.start : first + part.stop, ...])

            be.blocks(given.shape[0], tiles.image_bytes, finish)
        return total, gb


class _Part:
    """What the transformed gradients of some images give: to the weight's sum, and to gx."""

    def __init__(
        self,
        tiles: Tiles,
        x: Array,
        gx: Array | None,
        images: slice,
        needs: tuple[bool, bool, bool],
    ) -> None:
        self.tiles = tiles
        self.gx = None if gx is None else gx[images, ...]
        self.staged = tiles.staged(x) if needs[1] else None
        self.frame = None if gx is None else tiles.frame(x.shape[0])

    def add(
        self, h: Array, back: Array | None, rows: slice, sums: list[Array], accumulate: bool
    ) -> None:
        """Those rows of tiles, `h (t * t, T, O)`."""
        tiles, be = self.tiles, self.tiles.be
        if self.staged is not None:
            v = tiles.transform("tiles", self.staged, rows, tiles.minimal.data)
            be.matmul(be.permute(h, (0, 2, 1)), v, out=sums[0], accumulate=accumulate)
        if self.frame is not None and back is not None:
            shape = (*h.shape[:2], tiles.channels)
            product = be.workspace("spare", shape, h.dtype)
            be.matmul(h, back, out=product)
            tiles.add(product, self.frame, rows)

    def write(self) -> None:
        """Write the input's gradient, once all rows are in."""
        if self.gx is not None:
            self.tiles.write(self.frame, self.gx)
