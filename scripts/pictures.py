"""Train LeNet on the bundled digits, and draw all that dualcnn.viz draws.

    python scripts/pictures.py --out pictures

Needs matplotlib: pip install matplotlib. The pictures in docs/viz.md come from this script.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import dualcnn
from dualcnn import data, models, optim, train, viz


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="the folder")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--limit", type=int, help="only that many training images")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)

    dualcnn.manual_seed(options.seed)
    training, test = data.mnist5k()
    training = training[: options.limit]
    kept = len(training) * 9 // 10
    model = models.build("lenet")
    history = train.fit(
        model,
        training[:kept],
        validation=training[kept:],
        epochs=options.epochs,
        optimizer=optim.Adam(model.parameters(), lr=2e-3),
        seed=options.seed,
    )
    ((x, y),) = data.DataLoader(test, len(test))
    with dualcnn.no_grad():
        logits = model.eval()(x)
    predictions = logits.argmax(dim=1)
    worst = dualcnn.to_numpy(x)[viz.worst_indices(y, logits, 8)]

    figures = {
        "filters": viz.filters(model.conv1.weight),
        "filters_conv2": viz.filters(model.conv2.weight),
        "feature_maps": viz.feature_maps(viz.layer_output(model, "conv1", x[:1])),
        "training_curves": viz.training_curves(history),
        "confusion_matrix": viz.confusion_matrix(y, predictions, test.classes),
        "worst_predictions": viz.worst_predictions(x, y, logits, classes=test.classes),
        "grad_cam": viz.grad_cam(model, "conv2", x[:8], classes=test.classes),
        "grad_cam_worst": viz.grad_cam(model, "conv2", worst, classes=test.classes),
        "saliency": viz.saliency(model, x[:8], classes=test.classes),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        path = options.out / f"{name}.png"
        figure.savefig(path)
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
