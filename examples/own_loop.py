"""The same job in your own loop: a plain nn.Module, a plain torch optimizer, no trainer class.

python examples/own_loop.py FOLDER [OUT] [--model SPEC] [--weights pretrained|none|FILE] [--epochs N]
"""

from __future__ import annotations

import argparse

import torch

import headstart as hs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="FOLDER/CLASS/IMAGE, or FOLDER/train/CLASS and FOLDER/val/CLASS")
    parser.add_argument("out", nargs="?", default="runs/own-loop", help="folder for checkpoints")
    parser.add_argument("--model", default="starter", help="e.g. timm/resnet50.a1_in1k")
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)  # the new head's first values; order and augmentation have open_images' seed

    opened = hs.open_model(args.model, weights=args.weights)
    images = hs.open_images(args.folder, like=opened, val=0.2, batch_size=8)
    swap = hs.replace_head(opened.module, outputs=len(images.classes), hidden=(64,), dropout=0.2)
    print(f"{swap.path}: {swap.was} -> {swap.now} outputs, {', '.join(images.classes)}; {opened.coverage}")
    frozen = hs.freeze(opened.module, stages=1)
    print(f"{frozen.parameters:,} of {frozen.of:,} parameters are frozen")
    groups = hs.param_groups(opened.module, lr=1e-3, head_lr=1e-2, layer_decay=0.75, weight_decay=0.02)
    state = hs.TrainState(opened.module, torch.optim.AdamW(groups))

    for done in hs.fit(state, images.train, rules=hs.StepRules(clip_norm=1.0), epochs=args.epochs):
        if isinstance(done, hs.EpochDone):
            accuracy = hs.evaluate(state.model, images.val).accuracy
            print(f"epoch {done.epoch}: loss {done.train_loss:.4f}, accuracy {accuracy:.3f}")
            hs.save(state, args.out)  # hs.restore(state, OUT) goes on from there
            if accuracy > 0.98:
                break


if __name__ == "__main__":
    main()
