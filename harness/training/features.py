"""Training the small feature networks, with a card that says what each can do."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from harness.datasets import Images, dataset_fingerprint, load_dataset
from harness.errors import HarnessError
from harness.files import locked, replacing, require_writable, write_text
from harness.metrics.features import NetworkFeatures
from harness.metrics.networks import RECIPES, TASKS, FeatureNetwork, NetworkConfig, Recipe, default_recipe
from harness.metrics.quality import ReferenceFeatures
from harness.metrics.sanity import sanity_table

SHIPPED_FOR_KID = 1000
"""Features of test images that are shipped beside the statistics of all of them."""


def train_features(
    dataset: str,
    out: Path,
    root: Path | str | None = None,
    seed: int = 0,
    epochs: int | None = None,
    size: int | None = None,
    skip_corrupt: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Train the feature network of a dataset and write it, its card, its sanity table and reference features.

    A dataset that cannot be read, has no labels to learn or too few images, and a folder that cannot be written or that
    another process writes to, are a `HarnessError`, before anything is trained.

    Args:
        out: folder for ``features-DATASET.safetensors``, ``.md`` (the card) and ``.csv`` (the sanity table), and
            ``reference-DATASET.safetensors``, the features of the test split.
        seed: of the weights, the order of the images and the augmentation.
        epochs: instead of the recipe's.
        size: side to train at instead of the recipe's; a dataset of one's own is trained at its own size by default.
        skip_corrupt: leave unreadable images out, and report how many.
        report: is told one line per epoch.
    """
    if (epochs is not None and epochs < 1) or not 0 <= seed < 2**63:
        raise HarnessError(f"epochs = {epochs}, seed = {seed}: there is at least one epoch, and a seed is from 0")
    require_writable(out)
    given = {"seed": seed, "epochs": epochs, "size": size}
    options = "".join(f" --{name} {value}" for name, value in given.items() if value is not None)
    known = RECIPES.get(dataset)
    load_size = size or (known.image_size if known else None)
    train, test = (load_dataset(dataset, split, root, load_size, skip_corrupt) for split in ("train", "test"))
    test = test.of_shape(tuple(train.pixels.shape[1:]), f"the test split of '{dataset}'")
    recipe = known or default_recipe(dataset, train)
    _require_fit(recipe, train, test)
    recipe = recipe if epochs is None else replace(recipe, epochs=epochs)
    if train.skipped or test.skipped:
        report(f"left out {train.skipped} corrupt training images and {test.skipped} held-out ones")
    metadata = {"datasets": json.dumps(recipe.serves), "task": recipe.task, "seed": str(seed)}
    with suppress(HarnessError):  # of images that are not read from files and have corrupt ones among them
        metadata["images"] = dataset_fingerprint(dataset, "train", root)
    with locked(out, "trains a network in"):
        network = fit(recipe, train, seed, report)
        accuracy = held_out_accuracy(network, recipe, test)
        metadata |= {"config": json.dumps(asdict(network.config)), "held_out_accuracy": f"{accuracy:.4f}"}
        path = out / f"features-{dataset}.safetensors"
        with replacing(path) as partial:
            save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, partial, metadata)
        extractor = NetworkFeatures(path)
        reference = ReferenceFeatures.compute(test, extractor, kept=SHIPPED_FOR_KID)
        reference.save(out / f"reference-{dataset}.safetensors", split="test", images=test.digest)
        table = sanity_table(train, test, extractor)
        write_text(path.with_suffix(".csv"), table.to_csv(index=False, float_format="%.6g"))
        images = (len(train), len(test))
        write_text(path.with_suffix(".md"), _card(f"{dataset}{options}", recipe, network, images, accuracy, table))
        return path


def _require_fit(recipe: Recipe, train: Images, test: Images) -> None:
    """A `HarnessError` where the splits are of no use for a recipe: what would otherwise be found out at the end."""
    if min(len(train), len(test)) < 3:
        raise HarnessError(f"{len(train)} images to learn from and {len(test)} to test on are too few: at least 3 each")
    if recipe.task == "labels" and test.labels is None:
        raise HarnessError("the train split has labels and the test split has none; give both or neither")


def fit(recipe: Recipe, train: Images, seed: int, report: Callable[[str], None] = lambda line: None) -> FeatureNetwork:
    """A network trained by a recipe; the same seed on the same machine and thread count gives the same weights."""
    if recipe.task not in TASKS or (recipe.task == "labels" and train.labels is None):
        raise HarnessError(f"the task '{recipe.task}' needs labelled images; known tasks: {', '.join(TASKS)}")
    if train.pixels.shape[-1] != train.pixels.shape[-2]:
        raise HarnessError(f"the images are {tuple(train.pixels.shape[-2:])}; give a size to make them square")
    outputs = 4 if recipe.task == "rotations" else int(train.labels.max()) + 1  # type: ignore[union-attr]
    channels, size = train.pixels.shape[1], train.pixels.shape[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = FeatureNetwork(NetworkConfig(channels, size, recipe.widths, outputs, recipe.stem_stride))
    network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload] # absent from torch's stubs
    generator = torch.Generator().manual_seed(seed)
    batches = max(1, len(train) // recipe.batch_size)  # the rest, smaller than a batch, comes round in another epoch
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, total_steps=recipe.epochs * batches)
    for epoch in range(recipe.epochs):
        total = 0.0
        for rows in torch.randperm(len(train), generator=generator).split(recipe.batch_size)[:batches]:
            images, targets = _task(recipe, train, rows, generator)
            loss = F.cross_entropy(network(images), targets)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        if not math.isfinite(total):
            raise HarnessError(f"the loss of epoch {epoch + 1} is {total}, so no network is written")
        report(f"epoch {epoch + 1}/{recipe.epochs}: loss {total / batches:.4f}")
    return network.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]


def _task(recipe: Recipe, images: Images, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    batch = images.scaled(rows)
    if recipe.flips:
        mirrored = torch.rand(len(rows), generator=generator) < 0.5
        batch = torch.where(mirrored[:, None, None, None], batch.flip(3), batch)
    if recipe.task == "labels":
        return batch, images.labels[rows]  # type: ignore[index]
    turns = torch.randint(4, (len(rows),), generator=generator)
    return torch.stack([image.rot90(int(turn), (1, 2)) for image, turn in zip(batch, turns, strict=True)]), turns


@torch.no_grad()
def held_out_accuracy(network: FeatureNetwork, recipe: Recipe, test: Images) -> float:
    """Share of the held-out images whose class, or whose rotation (each image at all four), is predicted."""
    right = total = 0
    for rows in torch.arange(len(test)).split(256):
        images = test.scaled(rows)
        for turn in range(4 if recipe.task == "rotations" else 1):
            targets = torch.full((len(rows),), turn) if recipe.task == "rotations" else test.labels[rows]  # type: ignore[index]
            predicted = network(images.rot90(turn, (2, 3))).argmax(dim=1)
            right += int((predicted == targets).sum())
            total += len(rows)
    return right / total


def _card(
    arguments: str,
    recipe: Recipe,
    network: FeatureNetwork,
    images: tuple[int, int],
    accuracy: float,
    table: pd.DataFrame,
) -> str:
    config, parameters = network.config, sum(parameter.numel() for parameter in network.parameters())
    what = "class" if recipe.task == "labels" else "rotation by quarter turns"
    rows = "\n".join(
        f"| {row.change} | {row.level:g} | {row.num_samples} | {row.fid:.4f} | {row.kid:.5f} ± {row.kid_std:.5f} |"
        for row in table.itertuples()
    )
    return f"""# Feature network for {arguments.partition(" ")[0]}

Features for FID and KID where Inception's weights are not at hand. Values compare only with others of these features.

- Made by `harness train-features {arguments}` (torch {torch.__version__}, {torch.get_num_threads()} CPU thread(s)).
- Trained to predict the {what} of {images[0]:,} images at {config.image_size}x{config.image_size};
  held-out accuracy on {images[1]:,} images: **{accuracy:.1%}**.
- {config.dim} features, {parameters:,} parameters, {recipe.epochs} epochs, batch {recipe.batch_size}.
- Used for: {", ".join(recipe.serves)}.

## Sanity table

The test split, as it is (level 0) and made worse, against the train split. Noise is Gaussian with this standard
deviation in image units ([-1, 1]), blur Gaussian in pixels; modes are classes, or 10 k-means clusters of thumbnails
where there are fewer than 10 classes. KID is given with its standard error.

| change | level | samples | FID | KID |
|---|---|---|---|---|
{rows}
{_unseen(table)}"""


def _unseen(table: pd.DataFrame) -> str:
    """A sentence for every change that KID cannot tell from no change, even at its worst."""
    levels = table.groupby("change", sort=False)
    first, last = levels.nth(0).set_index("change"), levels.nth(-1).set_index("change")
    unseen = last.kid - first.kid < 2 * (first.kid_std**2 + last.kid_std**2) ** 0.5
    return "".join(
        f"\n**Not seen by these features: {change}.** Even the last level's KID is within two standard errors of the "
        "first's; where the number of samples falls, FID rises by its bias alone.\n"
        for change in unseen.index[unseen]
    )
