"""A chain of techniques on one model: from its source to a folder, with figures of both.

.. code-block:: none

    model --> technique --> tune --> settle --> technique --> ... --> compressed/
"""

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from isthmus.compress import (
    Samples,
    Step,
    Training,
    apply,
    check_chain,
    figures,
    parse_chain,
    settle,
)
from isthmus.compress.exits import EXITS, exit_paths, rule
from isthmus.compress.replace import NETWORK
from isthmus.compress.slim import SLIMMABLE
from isthmus.compress.technique import may_change
from isthmus.data import Dataset
from isthmus.data.images import NO_LABEL
from isthmus.errors import InputError
from isthmus.files import check_ours, write_bytes
from isthmus.graph import capture
from isthmus.machine import describe_machine, library_versions
from isthmus.models import (
    Compressed,
    ModelReference,
    carries_weights,
    load_model,
    read_compressed,
    reference,
)
from isthmus.models.compressed import (
    FILES,
    ExitFigures,
    Network,
    changes,
    pack_weights,
    write_compressed,
)
from isthmus.models.joint import Joint
from isthmus.models.load import is_random, load_weights, load_with
from isthmus.progress import Report, silent
from isthmus.study.state import data_fingerprint, kept_state, weights_fingerprint
from isthmus.train import (
    FitConfig,
    Progress,
    accuracy,
    agreement,
    check_fits,
    check_losses,
    fit_base,
    measure_exits,
    predict,
    tune,
    with_answers,
)

_MOST_SAMPLES = 512  # training samples that techniques look at
_ALIKE = 0.5  # agreement with the teacher, from which on batch norms stay
_STRANGE = 0.1  # of the outputs' norm; a value may round otherwise, and others behind it
_LEAST_OTHERS = 64  # with fewer beside these, short trainings take those too


def compress_model(
    model: nn.Module,
    source: ModelReference,
    steps: Sequence[Step],
    example: tuple[Tensor, ...],
    out: Path,
    *,
    inputs: Sequence[str],
    data: Dataset | None = None,
    config: FitConfig | None = None,
    report: Report = silent,
) -> Compressed:
    """Apply techniques in the order given, tune after each if asked to, and write the result.

    The state of tuning is kept beside ``out`` until it is done: interrupted, the same call goes
    on from the last finished epoch.

    Args:
        model: The model; left as it is, but trained first where ``config`` says so.
        source: Where it came from.
        steps: The techniques.
        example: Inputs of one sample or more.
        out: The folder to make.
        inputs: Shapes of the inputs, as ``--input`` takes them.
        data: Its training half is looked at and learned from, its test half read at the ends.
        config: How to tune; None tunes nothing.
        report: Told of every step.

    Returns:
        The facts, as written to ``compressed.json``.

    Raises:
        InputError: A technique is not for this model, or something else stands at ``out``.
    """
    check_ours(out, files=FILES)
    networks = networks_of(steps)
    made_from = (source, *(network.model for network in networks))
    if out.resolve() in (folder.resolve() for ref in made_from for folder in _folders(ref)):
        raise InputError(f"--out {out}: is what the model is made from; name another folder")
    if config is not None and data is None:
        raise InputError("--epochs: found no data to train on; add --data")
    if not steps:
        raise InputError("--with: found no technique; give one, see `isthmus techniques`")
    if data is not None:
        _check_data(model, steps, example, data)
    example = tuple(torch.cat([x, x])[:2] for x in example)
    _check_after(source, networks, steps)
    placed = check_chain(model.eval(), steps, Samples(example=example))
    _check_runs(model, placed, example, data)
    base = load_with(source, networks, where=NETWORK)
    where = ", ".join(ref.text for ref in made_from)
    load_weights(base, placed.state_dict(), where=where)
    _check_same(placed, base, example, where=where)
    _check_learns(placed, networks, config)
    if data is not None and config is not None:
        _check_losses(placed, model, steps, data, config)
    asked = (
        source,
        tuple(step.text for step in steps),
        networks,
        data and data_fingerprint(data),
        weights_fingerprint(model.state_dict()),
        config,
    )
    with kept_state(out, asked, report) as progress:
        if data is not None:
            if config is not None:
                fit_base(model, data, config, progress=progress)
            data = with_answers(model.eval(), data)
        samples = samples_of(model, example, data)
        compressed = run_steps(model, steps, samples, data, config, progress=progress)
        before, after = (
            figures(m, example, accuracy=accuracy(m, data.x_test, data.y_test) if data else None)
            for m in (model, compressed)
        )
        weights = pack_weights(compressed)
        facts = Compressed(
            source=source,
            techniques=tuple(step.text for step in steps),
            inputs=tuple(inputs),
            networks=networks,
            changes=changes(base, compressed),
            weights_sha256=hashlib.sha256(weights).hexdigest(),
            before=before,
            after=after,
            exits=_exits(compressed, steps, example, data),
            data="" if data is None else data.name,
            machine=describe_machine(),
            versions=library_versions(),
        )
        _check_changed(model, compressed, facts)

        def check(folder: Path) -> None:
            _check_same(compressed, load_model(str(folder)), example, where=str(folder))

        write_compressed(out, facts, weights, check=check)
        return facts


def networks_of(steps: Sequence[Step]) -> tuple[Network, ...]:
    """Return the networks that a chain puts in a model, and where."""
    return tuple(
        Network(path="".join(step.options["only"]), model=reference(step.options["name"]))
        for step in steps
        if _is_network(step)
    )


def _is_network(step: Step) -> bool:
    return step.technique.name == NETWORK


def _check_changed(model: nn.Module, other: nn.Module, facts: Compressed) -> None:
    mine, others = model.state_dict(), other.state_dict()
    same = mine.keys() == others.keys() and all(torch.equal(mine[n], others[n]) for n in mine)
    if same and not facts.changes and not facts.networks:
        raise InputError(
            f"--with {' '.join(facts.techniques)}: left the model as it was, and "
            "nothing is written; name other techniques, or train with --data and --epochs"
        )


def _check_same(
    model: nn.Module, again: nn.Module, example: tuple[Tensor, ...], *, where: str
) -> None:
    """Raise unless a model that was made again with a model's weights answers as that does."""
    answers = []
    for each in (model, again):
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            answers.append([x.float() for x in tree_leaves(each(*example)) if torch.is_tensor(x)])
    for made, loaded in zip(*answers, strict=True):
        if (made - loaded).norm() > _STRANGE * made.norm():
            raise InputError(
                f"{where}: once loaded the model gives other outputs; does it hold numbers that "
                "are no parameters, or buffers with persistent=False?"
            )


def _check_runs(
    model: nn.Module, placed: nn.Module, example: tuple[Tensor, ...], data: Dataset | None
) -> None:
    """Raise where figures could not be taken of a model, or of what other networks make it."""
    capture(model, example)
    if placed is not model:
        capture(placed.eval(), example)
        if data is not None:
            check_fits(placed, data)


def _check_learns(model: nn.Module, networks: Sequence[Network], config: FitConfig | None) -> None:
    if config is None:
        random = [n.model.text for n in networks if is_random(n.model.text)]
        if random:
            raise InputError(
                f"technique {NETWORK}: {random[0]} has random weights here; add --data and "
                "--epochs to train it"
            )
    elif not any(p.requires_grad for p in model.parameters()) and (
        networks or not config.base_epochs
    ):
        raise InputError("--epochs: found no weight that learns (requires_grad); leave it out")


def _check_data(
    model: nn.Module, steps: Sequence[Step], example: tuple[Tensor, ...], data: Dataset
) -> None:
    check_fits(model, data)
    found, said = ([tuple(x.shape[1:]) for x in each] for each in (data.x_train, example))
    if found != said:
        raise InputError(
            f"--input: found samples of {said}, but {data.name} has {found}; give that shape"
        )
    if data.unlabelled and any(rule(s.options).kind == "drop" for s in steps if _exiting(s)):
        raise InputError(
            f"{data.name}: found no labels, of which {EXITS},drop= counts points of accuracy; "
            "bring some, or give agreement="
        )


def _check_after(
    source: ModelReference, networks: Sequence[Network], steps: Sequence[Step]
) -> None:
    """Raise where a step would undo one by which what it changes was made."""
    try:
        parse_chain(_history(source, networks, tuple(step.text for step in steps)))
    except InputError as error:
        raise InputError(f"{source.text}: {error}") from error


def _history(
    source: ModelReference, networks: Sequence[Network], texts: tuple[str, ...]
) -> tuple[str, ...]:
    """Return all techniques behind a model, from the last network on that stands for all of it."""
    whole = [network.model for network in networks if not network.path]
    if whole:
        steps = parse_chain(texts)
        last = max(k for k, s in enumerate(steps) if _is_network(s) and not s.options["only"])
        return _history(whole[-1], (), texts[last + 1 :])
    if not carries_weights(source.text):
        return texts
    facts = read_compressed(Path(source.text))
    return (*_history(facts.source, facts.networks, facts.techniques), *texts)


def _folders(source: ModelReference) -> tuple[Path, ...]:
    """Return the folders of compressed models that a source was made from, the first one first."""
    if not carries_weights(source.text):
        return ()
    folder = Path(source.text)
    facts = read_compressed(folder)
    refs = (facts.source, *(network.model for network in facts.networks))
    return (*(before for ref in refs for before in _folders(ref)), folder)


def _check_losses(
    model: nn.Module,
    teacher: nn.Module,
    steps: Sequence[Step],
    data: Dataset,
    config: FitConfig,
) -> None:
    """Raise where a step, tuned, would be refused whatever the steps before it make."""
    reused = check_losses(model, teacher, data, config)
    for step in steps if reused else ():
        technique, line = step.technique, f"loss simkd: takes over the classifier {reused}"
        if technique.name in (EXITS, SLIMMABLE):
            raise InputError(
                f"{line}, but {technique.name} trains several answers; expected hinton"
            )
        ends = step.options.get("ends") == "keep"
        if technique.stage != "structure" and may_change(reused, step.options) and not ends:
            raise InputError(
                f"{line}, which {technique.name} changes itself; expected hinton, or "
                f"skip={reused} in {technique.name}"
            )


def _exits(
    compressed: nn.Module, steps: Sequence[Step], example: tuple[Tensor, ...], data: Dataset | None
) -> tuple[ExitFigures, ...]:
    """Return what the exits are worth in the end that a step trained the model for."""
    asked = [step for step in steps if _exiting(step)]
    if not asked or data is None:
        return ()
    options = asked[-1].options
    paths = exit_paths(compressed, options, Samples(example=example))
    return measure_exits(compressed, paths, data, rule(options))


def _exiting(step: Step) -> bool:
    return step.technique.name == EXITS


def run_steps(
    model: nn.Module,
    steps: Sequence[Step],
    samples: Samples,
    data: Dataset | None = None,
    config: FitConfig | None = None,
    *,
    progress: Progress | None = None,
) -> nn.Module:
    """Return what a chain of techniques makes of a copy of a model; see `compress_model`."""
    progress = progress or Progress()
    made = copy.deepcopy(model).eval()
    for number, step in enumerate(steps, start=1):
        name = f"tune {number} {step.technique.name}"
        training = None
        if data is not None and config is not None:
            how = config
            if _is_network(step) and not step.options["only"]:
                how = replace(config, finetune_rate=config.learning_rate)  # it is new
            training = _training(name, model, data, how, progress)
        if config is not None:
            torch.manual_seed(config.seed)  # whatever was trained in this sitting
        made = apply(made, step, replace(samples, training=training))
        progress.report(step.text, 1, 1)
        if training and step.technique.name != "fold":
            training.whole(made, "")
        made = settle(made)
    return made


def _training(
    prefix: str, teacher: nn.Module, data: Dataset, config: FitConfig, progress: Progress
) -> Training:
    r"""Return how a technique may train; its phases and notes have names with a prefix.

    What was changed little has more to lose than to learn: with an agreement a with its teacher
    the learning rate is :math:`r \; 10^{-a}`, and from a half on batch norms keep what they came
    with, as few samples tell it worse. A model that is trained
    from nothing here has all to learn, and so have new exits and widths.
    """
    others = _order(data)[_MOST_SAMPLES:]
    if len(others) < _LEAST_OTHERS:
        others = _order(data)

    def trained(model: nn.Module, data: Dataset, config: FitConfig, **how: Any) -> None:
        young = config.base_epochs > 0 or isinstance(model, Joint)  # has all to learn
        same = 0.0 if young else agreement(model, teacher, data)
        paced = replace(config, finetune_rate=config.finetune_rate * 10**-same)
        tune(model, teacher, data, paced, keep_norms=same >= _ALIKE, **how)

    def whole(model: nn.Module, name: str, penalty: Callable[[], Tensor] | None = None) -> None:
        name = f"{prefix} {name}".strip()
        trained(model, data, config, name=name, penalty=penalty, progress=progress)

    def short(model: nn.Module, num: int) -> None:
        few = others[:num]
        part = replace(
            data, x_train=tuple(x[few] for x in data.x_train), y_train=data.y_train[few]
        )
        trained(model, part, replace(config, epochs=1))

    def kept(name: str, find: Callable[[], str]) -> str:
        file = progress.checkpoints and progress.checkpoints / f"{prefix} {name}.txt"
        if file and file.is_file():
            return file.read_text(encoding="utf-8")
        found = find()
        if file:
            write_bytes(file, found.encode())
        progress.report(f"{prefix}, {name} {found}", 1, 1)
        return found

    return Training(whole=whole, short=short, kept=kept)


def samples_of(model: nn.Module, example: tuple[Tensor, ...], data: Dataset | None) -> Samples:
    """Return what techniques may look at: training samples, drawn evenly, and their labels."""
    if data is None:
        return Samples(example=example)
    chosen = _order(data)[:_MOST_SAMPLES]
    inputs = tuple(x[chosen] for x in data.x_train)
    labels = torch.from_numpy(data.y_train[chosen])
    if (labels == NO_LABEL).any():
        labels = predict(model, inputs).argmax(dim=1)
    tensors = tuple(torch.from_numpy(x) for x in inputs)
    return Samples(example=example, inputs=tensors, labels=labels)


def _order(data: Dataset) -> np.ndarray:
    return np.random.default_rng(0).permutation(len(data.y_train))
