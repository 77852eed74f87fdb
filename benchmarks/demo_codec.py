"""Which codec of 32 bytes should the demo use? Chosen on held-out training images.

    python benchmarks/demo_codec.py [--out benchmarks/results]

A fifth of the digits' training set is held out; base network and crossing are trained on the rest
by the demo's recipe, seeds 0..4. The test set is not read.
"""

import argparse
import copy
import statistics
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from table import write_csv

from isthmus.data import Dataset, load_data
from isthmus.files import write_bytes
from isthmus.machine import describe_machine, library_versions
from isthmus.models import load_model
from isthmus.study import Recipe, demo, make_plan
from isthmus.train import accuracy, fit_base, fit_crossings, split_with_codecs

CODECS = ("bottleneck:ratio=16,bits=8", "bottleneck:ratio=8,bits=4", "bottleneck:ratio=4,bits=2")
EPOCHS = (12, 24)
SEEDS = range(5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--hardware", default="2core-x86")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = held_out(load_data("digits"))
    rows = [row for seed in SEEDS for row in rows_of(seed, data)]
    name = f"demo_codec_{arguments.hardware}_{date.today():%Y-%m}"
    write_csv(arguments.out / f"{name}.csv", rows)
    write_bytes(arguments.out / f"{name}.md", text(rows, name).encode())
    print(text(rows, name))


def held_out(data: Dataset) -> Dataset:
    kept, held = train_test_split(
        np.arange(len(data.y_train)), test_size=0.2, random_state=1, stratify=data.y_train
    )
    return Dataset(
        name="digits, a fifth of the training set held out",
        x_train=tuple(x[kept] for x in data.x_train),
        y_train=data.y_train[kept],
        x_test=tuple(x[held] for x in data.x_train),
        y_test=data.y_train[held],
    )


def rows_of(seed: int, data: Dataset) -> list[dict[str, float | str]]:
    recipe = demo()
    torch.manual_seed(seed)
    base = load_model(recipe.model)
    fit_base(base, data, replace(recipe.fit, seed=seed))
    whole = accuracy(base, data.x_test, data.y_test)
    rows: list[dict[str, float | str]] = []
    for codec in CODECS:
        for epochs in EPOCHS:
            fit = replace(recipe.fit, seed=seed, epochs=epochs)
            split = crossed(copy.deepcopy(base), replace(recipe, codec=codec, fit=fit), data)
            rows.append(
                {
                    "seed": seed,
                    "codec": codec,
                    "epochs": epochs,
                    "accuracy_whole": round(whole, 4),
                    "accuracy_split": round(split, 4),
                }
            )
            print(rows[-1], flush=True)
    return rows


def crossed(model: torch.nn.Module, recipe: Recipe, data: Dataset) -> float:
    split_model = split_with_codecs(model, make_plan(model, recipe, data))
    fit_crossings(split_model, data, recipe.fit)
    return accuracy(split_model, data.x_test, data.y_test)


def text(rows: list[dict[str, float | str]], name: str) -> str:
    versions = ", ".join(f"{key} {value}" for key, value in library_versions().items())
    lines = [
        f"# {name}",
        "",
        "Held-out accuracy of the demo's network through codecs of 32 bytes, cut after layer2, on",
        "287 of the 1,437 training images of scikit-learn's digits; five seeds. The test set was",
        "not read.",
        "",
        "- command: `python benchmarks/demo_codec.py`",
        f"- machine: {describe_machine()}",
        f"- versions: {versions}",
        "",
        "| codec | epochs | mean drop, points | standard deviation |",
        "| --- | ---: | ---: | ---: |",
    ]
    for codec in CODECS:
        for epochs in EPOCHS:
            drops = [
                100 * (float(row["accuracy_whole"]) - float(row["accuracy_split"]))
                for row in rows
                if row["codec"] == codec and row["epochs"] == epochs
            ]
            mean, spread = statistics.mean(drops), statistics.stdev(drops)
            lines.append(f"| {codec} | {epochs} | {mean:.2f} | {spread:.2f} |")
    return "\n".join([*lines, "", "A negative drop means that the split network did better.", ""])


if __name__ == "__main__":
    main()
