"""Known mistakes in what makes and sends batches: augmentation, uploads, the files of CIFAR-10."""

from __future__ import annotations

from .fault import Fault

AUGMENT = "data/augment.py"
UPLOAD = "backend/upload.py"

FAULTS = (
    Fault(
        "crop: the last place is never taken",
        AUGMENT,
        "whole + 2 * self.padding - part + 1)",
        "max(1, whole + 2 * self.padding - part))",
        "test_data_augment.py",
    ),
    Fault(
        "crop: rows and columns move alike",
        AUGMENT,
        "drawn = words[axis * n : (axis + 1) * n]",
        "drawn = words[:n]",
        "test_data_augment.py",
    ),
    Fault(
        "reflection repeats the outermost pixel",
        AUGMENT,
        "last - xp.abs(last - xp.abs(first + step - before))",
        "xp.minimum(xp.abs(first + step - before), last)",
        "test_data_augment.py",
    ),
    Fault(
        "a batch is flipped as a whole",
        AUGMENT,
        "words[:, None], _range(be, width)[None, :], round",
        "words[:1, None], _range(be, width)[None, :] + 0 * words[:, None], round",
        "test_data_augment.py",
    ),
    Fault(
        "cutout: a square one pixel larger",
        AUGMENT,
        "self.size // 2, self.size - 1",
        "self.size // 2, self.size",
        "test_data_augment.py",
    ),
    Fault(
        "every epoch is augmented alike",
        "data/loader.py",
        "random.batch_stream(self.seed, epoch, step, layer)",
        "random.batch_stream(self.seed, 0, step, layer)",
        "test_data_augment.py",
    ),
    Fault(
        "a resumed pass counts its batches from 0",
        "data/loader.py",
        "enumerate(rows, first)",
        "enumerate(rows)",
        "test_data_augment.py",
    ),
    Fault(
        "labels from the host change under the user",
        "data/loader.py",
        "be.xp.astype(y, self._target, copy=True)",
        "be.xp.astype(y, self._target, copy=False)",
        "test_data_loader.py",
        "cupy-stand-in",
    ),
    Fault(
        "a batch is read before it has come",
        UPLOAD,
        "        stream.wait_event(self._sent)\n",
        "",
        "test_backend_upload.py",
    ),
    Fault(
        "a batch is sent over one that is still read",
        UPLOAD,
        "        stream.wait_event(self._used)\n",
        "",
        "test_backend_upload.py",
    ),
    Fault(
        "a pinned buffer is filled while it is sent",
        UPLOAD,
        "        self.wait()\n",
        "",
        "test_backend_upload.py",
    ),
    Fault(
        "CIFAR-10: the label taken for a pixel",
        "data/cifar.py",
        "part[:, 1:] for part",
        "part[:, :-1] for part",
        "test_data_cifar.py",
    ),
)
