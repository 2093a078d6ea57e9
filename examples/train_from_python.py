"""Fine-tune on a folder of class folders, and ask the model about one of its images.

python examples/train_from_python.py FOLDER [OUT] [--model SPEC] [--weights pretrained|none|FILE] [--epochs N]
"""

from __future__ import annotations

import argparse

import headstart as hs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="FOLDER/CLASS/IMAGE, or FOLDER/train/CLASS and FOLDER/val/CLASS")
    parser.add_argument("out", nargs="?", default="runs/from-python", help="run folder")
    parser.add_argument("--model", default="starter", help="e.g. timm/resnet50.a1_in1k")
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()

    config = hs.load_config(
        {
            "data": {"source": args.folder},
            "model": {"name": args.model, "weights": args.weights},
            "augment": {"preset": "light"},
            "epochs": args.epochs,
            "out": args.out,
        }
    )
    try:
        for decision in hs.plan(config).decisions:
            print(f"{decision.name}: {decision.value}  ({decision.reason})")
        run = hs.train(config, resume=True, watch=show)
    except hs.Error as error:  # the user's mistake or a full disk: one message, no traceback
        raise SystemExit(f"{error}") from error
    print(f"accuracy {run.metrics['accuracy']:.3f}, report in {run.path / 'report.html'}")

    images = hs.open_images(args.folder, like=hs.open_run(run.path).preprocess)
    found = hs.predict(run.model, images.val)  # as they were validated: (N, K) probabilities
    likeliest = images.classes[int(found.outputs[0].argmax())]
    print(f"{found.keys[0]}: {likeliest} {float(found.outputs[0].max()):.3f}")


def show(event: object) -> None:
    if isinstance(event, hs.EpochDone):
        print(f"epoch {event.epoch}: loss {event.train_loss:.4f}, accuracy {event.metrics['accuracy']:.3f}")


if __name__ == "__main__":
    main()
