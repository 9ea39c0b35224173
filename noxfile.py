# /// script
# requires-python = ">=3.11"
# dependencies = ["nox>=2025.5.1"]
# ///
"""The checks of the project. `nox` runs those that need no device, `nox -l` lists all."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import zipfile

import nox

nox.needs_version = ">=2025.5.1"
# `uv` where it is installed. PyTorch's CPU build may come from a pip-only source: see `torch`.
nox.options.default_venv_backend = "uv|virtualenv"

ROOT = pathlib.Path(__file__).parent
PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
HOST_BACKENDS = ("numpy", "strict", "cupy-stand-in")
CUDA = ("cuda12x", "cuda13x")
WHEEL_LIMIT = 2_000_000
# 36,600 today, in about 60 ms; numpy's own import makes 145,000 (Python 3.11, numpy 2.4).
IMPORT_LIMIT = 60_000
TORCH = ("torch==2.13.0", "expecttest")
# CuPy's compiler and headers without the libraries of a GPU: 160 MB where cupy[ctk] takes 2 GB.
CUPY_ON_A_HOST = (
    "cupy-cuda13x==14.2.0",
    "nvidia-cuda-nvrtc==13.0.*",
    "nvidia-cuda-runtime==13.0.*",
)


def runs(version: str) -> bool:
    """True if `pythonX.Y` starts: a version manager's shim is on the path even when it does not."""
    command = shutil.which(f"python{version}")
    return (
        command is not None
        and subprocess.run([command, "--version"], capture_output=True).returncode == 0
    )


PRESENT = [version for version in PYTHONS if runs(version)]
nox.options.sessions = [
    "lint",
    "typecheck",
    *(f"tests-{version}({name})" for version in PRESENT for name in HOST_BACKENDS),
    *(["minimums"] if PYTHONS[0] in PRESENT else []),
    "build",
    "left_out",
]


def install_group(session: nox.Session, *groups: str) -> None:
    session.install(*nox.project.dependency_groups(PROJECT, *groups))


@nox.session(python=PRESENT)
@nox.parametrize("backend", [nox.param(name, id=name) for name in (*HOST_BACKENDS, *CUDA)])
def tests(session: nox.Session, backend: str) -> None:
    """The tests on one Python and one backend; cuda12x and cuda13x need a GPU."""
    if backend in CUDA:
        require_gpu(session)
        session.install(f".[{backend}]")
        session.env["DUALCNN_REQUIRE_GPU"] = "1"
    else:
        session.install(".")
    install_group(session, "test")
    name = "cupy" if backend in CUDA else backend
    session.run("pytest", "--backend", name, *session.posargs)


def require_gpu(session: nox.Session) -> None:
    command = shutil.which("nvidia-smi")
    if command is None:
        session.error("This session was asked to test on a GPU, and nvidia-smi is not on the path.")
    answer = subprocess.run([command, "-L"], capture_output=True, text=True)
    if answer.returncode != 0 or "GPU" not in answer.stdout:
        said = (answer.stdout + answer.stderr).strip()
        session.error(f"This session was asked to test on a GPU, and nvidia-smi says: {said}")


@nox.session(reuse_venv=True)
def lint(session: nox.Session) -> None:
    """Rules, format and banned imports (ruff); the floors (import-linter)."""
    session.install("-e", ".")
    install_group(session, "lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports", "--no-cache")


@nox.session(reuse_venv=True)
def typecheck(session: nox.Session) -> None:
    """mypy, strict."""
    session.install("-e", ".")
    install_group(session, "lint")
    session.run("mypy")


@nox.session(python=PYTHONS[0])
def minimums(session: nox.Session) -> None:
    """The tests on the lowest Python and the lowest allowed core dependencies."""
    pins = [requirement.replace(">=", "==") for requirement in PROJECT["project"]["dependencies"]]
    session.install(".", *nox.project.dependency_groups(PROJECT, "test"), *pins)
    session.run("pytest", "--backend", "numpy", *session.posargs)


@nox.session(python="3.11", venv_backend="virtualenv")
def oracle(session: nox.Session) -> None:
    """The tests, with PyTorch there to compare with: its own samples, modules, optimizers."""
    # pip, and this Python and version: other pairs may resolve to a CUDA build of gigabytes.
    session.install(".", *nox.project.dependency_groups(PROJECT, "test"), *TORCH)
    session.run("pytest", "--backend", "numpy", *session.posargs)


@nox.session(reuse_venv=True)
def faults(session: nox.Session) -> None:
    """Known mistakes put into the library one at a time: a test must notice each."""
    session.install("-e", ".", *nox.project.dependency_groups(PROJECT, "test"))
    session.run("python", "tests/faults/run.py", *session.posargs)


@nox.session(python="3.11")
def kernels(session: nox.Session) -> None:
    """The real CuPy without a GPU: views, what it fuses, and its kernels compiled for each GPU."""
    session.install(".", *nox.project.dependency_groups(PROJECT, "test"), *CUPY_ON_A_HOST)
    session.env.update(DUALCNN_REQUIRE_CUPY="1", CUDA_VISIBLE_DEVICES="")
    session.run("pytest", *(session.posargs or ["tests/cupy_host"]))


@nox.session
def build(session: nox.Session) -> None:
    """Wheel and sdist: built, looked into, and each installed and used in an empty environment."""
    session.install("build")
    folder = pathlib.Path(session.create_tmp()).resolve()
    shutil.rmtree(folder)
    folder.mkdir()
    session.run("python", "-m", "build", "--outdir", str(folder), silent=True)
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    check_wheel(session, wheel)
    for package in (wheel, sdist):
        home = folder / package.suffix.strip(".")
        session.run("python", "-m", "venv", str(home))
        programs = home / ("Scripts" if (home / "Scripts").exists() else "bin")
        session.run(str(programs / "pip"), "install", "-q", str(package), external=True)
        # Away from the checkout, or Python would import that one.
        with session.chdir(home):
            session.run(str(programs / "dualcnn"), "info", external=True)
            python = str(programs / "python")
            session.run(python, "-c", "from dualcnn import data; data.mnist5k()", external=True)
            check_import(session, python)


def check_wheel(session: nox.Session, wheel: pathlib.Path) -> None:
    size = wheel.stat().st_size
    session.log(f"{wheel.name}: {size:,} bytes of {WHEEL_LIMIT:,}")
    if size >= WHEEL_LIMIT:
        session.error("The wheel is too large.")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "dualcnn").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    if inside != expected:
        session.error(f"The wheel and dualcnn/ differ by {sorted(inside ^ expected)}.")


def check_import(session: nox.Session, python: str) -> None:
    """What `import dualcnn` costs beyond numpy, in function calls: the same on any machine.

    Its time is only logged: a machine of half the speed takes twice as long over the same work.
    """
    code = """
import sys, time, numpy
calls = 0
def count(frame, event, argument):
    global calls
    calls += event in ("call", "c_call")
if sys.argv[1] == "calls":
    sys.setprofile(count)
start = time.process_time()
import dualcnn
seconds = time.process_time() - start
sys.setprofile(None)
print(calls, round(1000 * seconds))
"""
    # The first import compiles the modules, unless the environment forbids to keep them.
    options = {"env": {"PYTHONDONTWRITEBYTECODE": ""}, "silent": True, "log": False}

    def imported(what: str) -> list[int]:
        line = session.run(python, "-c", code, what, external=True, **options)
        return [int(number) for number in str(line).split()]

    imported("time")
    _, milliseconds = imported("time")
    calls, _ = imported("calls")
    session.log(
        f"import dualcnn beyond numpy: {calls:,} calls of {IMPORT_LIMIT:,}, {milliseconds} ms"
    )
    if calls > IMPORT_LIMIT:
        session.error("import dualcnn does too much: `python -X importtime -c 'import dualcnn'`.")


@nox.session(venv_backend="none", default=False)
def left_out(session: nox.Session) -> None:
    """What plain `nox` does not run, and why."""
    for version in PYTHONS:
        if version not in PRESENT:
            session.log(f"left out: Python {version}, because python{version} does not run here")
    for name in CUDA:
        ask = f"nox -s 'tests-{PRESENT[-1] if PRESENT else PYTHONS[0]}({name})'"
        session.log(f"left out: tests on {name}, which need a GPU and fail without one: {ask}")
    session.log("left out: oracle, which installs PyTorch: nox -s oracle")
    session.log("left out: kernels, which installs CuPy and CUDA's compiler: nox -s kernels")
    session.log("left out: faults, a few minutes: nox -s faults")


if __name__ == "__main__":
    nox.main()
