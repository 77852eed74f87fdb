"""The study in its database, on both kinds."""

from dataclasses import replace

import optuna
import pytest
from sqlalchemy import text

from isthmus.errors import InputError, StorageError
from isthmus.study.records import (
    StudyRecord,
    read_records,
    records_table,
    table_csv,
    table_markdown,
    write_records,
)
from isthmus.study.store import (
    Failure,
    add_cells,
    beat,
    claim,
    create_study,
    fail,
    finish,
    open_study,
    proposal,
    records,
    release,
    summarize,
)
from tests.study.computes import figures, grid


def record_of(claimed, **more):
    return StudyRecord(
        key=claimed.cell.key,
        cell=claimed.cell,
        config={"rate": 0.1},
        figures=figures(claimed.cell, **more),
        machine="a machine",
        versions={"python": "3.11"},
        revision=None,
        seconds=1.5,
        attempts=claimed.attempt,
    )


def finish_all(study):
    while (claimed := claim(study)) is not None:
        assert finish(study, claimed, record_of(claimed))


def long_ago(study):
    """Let all hearts have beaten last in another year."""
    with study.storage.engine.begin() as connection:
        connection.execute(text("UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00'"))


def create_together(barrier, url):
    barrier.wait(30)
    create_study(grid(8), url)


def test_creators_at_the_same_time_enqueue_every_cell_once(url, processes):
    barrier = processes.Barrier(3)
    creators = [processes.Process(target=create_together, args=(barrier, url)) for _ in range(3)]
    for creator in creators:
        creator.start()
    for creator in creators:
        creator.join(60)
    assert [creator.exitcode for creator in creators] == [0, 0, 0]
    with open_study(url, "tiny") as study:
        keys = [trial.user_attrs["key"] for trial in study.trials.get_trials()]
    assert sorted(keys) == sorted(cell.key for cell in grid(8).cells)


def test_every_cell_is_claimed_once_and_its_record_comes_back(url, tmp_path):
    create_study(grid(), url)
    with open_study(url, "tiny") as study:
        claims = [claim(study) for _ in range(5)]
        assert [each and each.cell for each in claims] == [*grid().cells, None]
        assert summarize(study).running == 4
        made = [record_of(each, curve=[0.5, 0.75]) for each in claims if each]
        assert all(finish(study, each, r) for each, r in zip(claims, made, strict=False) if each)
        assert records(study) == tuple(sorted(made, key=lambda each: each.key))
        write_records(tmp_path / "records.jsonl", records(study))
    assert read_records(tmp_path / "records.jsonl") == tuple(sorted(made, key=lambda r: r.key))


def test_a_silent_worker_loses_its_cell_and_its_record_is_not_taken(url):
    create_study(grid(1), url)
    with open_study(url, "tiny") as study:
        silent = claim(study)
        assert silent is not None
        assert beat(study, silent)
        assert claim(study) is None
        long_ago(study)
        second = claim(study)
        assert second is not None
        assert (second.cell, second.attempt) == (silent.cell, 2)
        assert not beat(study, silent)
        assert not finish(study, silent, record_of(silent, late=True))
        fail(study, silent, "too late")
        release(study, silent)
        made = record_of(second)
        assert finish(study, second, made)
        assert finish(study, second, made)  # as when the answer was lost
        assert records(study) == (made,)
        assert [trial.state.name for trial in study.trials.get_trials()] == ["FAIL", "COMPLETE"]


def test_a_cell_whose_workers_keep_dying_is_given_up_until_the_study_is_run_again(sqlite):
    create_study(grid(1), sqlite)
    with open_study(sqlite, "tiny") as study:
        for attempt in range(1, 5):
            claimed = claim(study)
            assert claimed is not None
            assert claimed.attempt == attempt
            long_ago(study)
        assert claim(study) is None
        key = grid().cells[0].key
        reason = "its worker died, 4 times in all"
        assert summarize(study).failed == (Failure(key=key, reason=reason),)
        create_study(grid(1), sqlite)
        assert claim(study) is not None


def test_a_failed_cell_has_its_reason_and_is_tried_again_with_the_study(url):
    create_study(grid(2), url)
    with open_study(url, "tiny") as study:
        claimed = claim(study)
        assert claimed is not None
        fail(study, claimed, "no such data")
        finish_all(study)
        summary = summarize(study)
        assert (summary.finished, summary.total) == (1, 2)
        assert summary.failed == (Failure(key=claimed.cell.key, reason="no such data"),)
        create_study(grid(2), url)
        assert summarize(study).waiting == 1
        finish_all(study)
        assert summarize(study).failed == ()
        assert len(records(study)) == 2


def test_a_released_cell_waits_again(url):
    create_study(grid(1), url)
    with open_study(url, "tiny") as study:
        first = claim(study)
        assert first is not None
        release(study, first)
        again = claim(study)
        assert again is not None
        assert again.cell == first.cell


def test_a_study_grows_but_computes_nothing_twice(sqlite):
    create_study(grid(2), sqlite)
    with open_study(sqlite, "tiny") as study:
        finish_all(study)
        create_study(grid(3), sqlite)
        assert summarize(study).waiting == 1
        create_study(grid(2), sqlite)
        assert summarize(study).total == 3


def test_a_study_with_another_config_shows_the_differences_and_stays_as_it_is(sqlite):
    create_study(grid(), sqlite)
    cells = tuple(replace(cell, epochs=9) for cell in grid().cells)
    with pytest.raises(InputError) as caught:
        create_study(grid(cells=cells, config={"rate": 0.2, "flip": True}), sqlite)
    assert str(caught.value) == (
        "study tiny: it is stored with another config: cells.epochs: stored [6], asked [9]; "
        "config.flip: stored nothing, asked True; config.rate: stored 0.1, asked 0.2; "
        "ask for the stored one, or begin another study"
    )
    with open_study(sqlite, "tiny") as study:
        assert summarize(study).total == 4


def test_figures_that_cannot_be_compared_or_written_are_refused(sqlite):
    create_study(grid(1), sqlite)
    with open_study(sqlite, "tiny") as study:
        claimed = claim(study)
        assert claimed is not None
        for accuracy, found in ((float("nan"), "nan"), ("high", "'high'"), (None, "None")):
            with pytest.raises(ValueError, match=f"figure accuracy: found {found}, expected a"):
                finish(study, claimed, record_of(claimed, accuracy=accuracy))
        with pytest.raises(ValueError, match="not JSON compliant"):
            finish(study, claimed, record_of(claimed, curve=[float("inf")]))
        assert summarize(study).running == 1


def test_a_second_record_of_one_cell_is_never_reported(sqlite):
    create_study(grid(1), sqlite)
    with open_study(sqlite, "tiny") as study:
        finish_all(study)
        copy = study.trials.get_trials()[0]
        study.trials.add_trial(copy)
        with pytest.raises(InputError, match=r"trial 1: a second record of resnet18/.*; expected"):
            records(study)


def test_a_search_chooses_among_the_candidates_and_tries_none_twice(sqlite):
    asked = grid(2, candidates=grid(6).cells, search=3)
    create_study(asked, sqlite)
    with open_study(sqlite, "tiny") as study:
        finish_all(study)
        found = [record.cell for record in records(study)]
        assert len(found) == 5
        assert set(grid(2).cells) < set(found) < set(grid(6).cells)
        create_study(asked, sqlite)
        assert claim(study) is None
        best = [trial.user_attrs["key"] for trial in study.trials.best_trials]
        assert sorted(best) == sorted(cell.key for cell in found)  # all on the front, by design


def test_a_search_with_one_worker_repeats(tmp_path):
    chosen = []
    for name in ("one", "two"):
        url = f"sqlite:///{tmp_path}/{name}.db"
        create_study(grid(1, candidates=grid(8).cells, search=4), url)
        with open_study(url, "tiny") as study:
            finish_all(study)
            chosen.append([record.cell for record in records(study)])
    assert chosen[0] == chosen[1]


def test_a_search_may_be_added_and_grow_but_never_shrinks(sqlite):
    create_study(grid(2), sqlite)
    for search, finished in ((0, 2), (1, 3), (3, 5), (1, 5), (0, 5)):
        create_study(grid(2, candidates=grid(6).cells, search=search), sqlite)
        with open_study(sqlite, "tiny") as study:
            finish_all(study)
            assert summarize(study).finished == finished


def test_a_search_learns_only_from_cells_that_were_judged_as_its_candidates_are(sqlite):
    held_out = tuple(replace(cell, judged="held-out") for cell in grid(3).cells)
    create_study(grid(2, candidates=held_out, search=3), sqlite)
    with open_study(sqlite, "tiny") as study:
        finish_all(study)
        judged = [record.cell.judged for record in records(study)]
        assert sorted(judged) == ["held-out"] * 3 + ["test"] * 2
        assert claim(study) is None


def test_after_some_tries_a_search_looks_near_what_was_best():
    # Two rows of 40 networks: in one the accuracy is 0.9 wherever, in the other 0.1, and bytes
    # are the same for all. Twenty tries, half of them each: the next is of the better row.
    plain = grid(1).cells[0]
    space = [
        replace(plain, width=width, placement=placement)
        for width in range(1, 41)
        for placement in ("block", "cut")
    ]
    known = [(cell, [0.9 if cell.placement == "cut" else 0.1, 64.0]) for cell in space[:40:2]]
    known += [(cell, [0.9 if cell.placement == "cut" else 0.1, 64.0]) for cell in space[1:40:2]]
    free = space[40:]
    chosen = []
    for seed in range(10):
        sampler = optuna.samplers.TPESampler(seed=seed)
        scratch = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
        chosen.append(proposal(scratch, free, known).placement)
    assert chosen.count("cut") >= 8


def test_cells_are_added_once(sqlite):
    create_study(grid(2), sqlite)
    with open_study(sqlite, "tiny") as study:
        assert add_cells(study, grid(3).cells) == 1
        assert add_cells(study, grid(3).cells) == 0
        assert summarize(study).waiting == 3


class TestADatabaseThatCannotBeUsed:
    """One line each, and no password in it."""

    def one_line(self, act, address):
        with pytest.raises(StorageError) as caught:
            act(address)
        line = str(caught.value)
        assert "\n" not in line
        assert "secret" not in line
        return line

    @pytest.mark.parametrize("act", [lambda url: create_study(grid(), url), None])
    def test_because_nothing_listens_there(self, act):
        url = "postgresql://me:secret@127.0.0.1:1/studies"
        line = self.one_line(act or open_tiny, url)
        assert "postgresql+psycopg://me:***@127.0.0.1:1/studies: cannot be used (" in line
        assert "refused" in line

    def test_because_there_is_no_such_database(self, server):
        line = self.one_line(open_tiny, server.url("nowhere"))
        assert 'database "nowhere" does not exist' in line

    def test_because_there_is_no_file(self, tmp_path):
        line = self.one_line(open_tiny, f"sqlite:///{tmp_path}/none.db")
        assert line.endswith("none.db: no such file; create the study first")
        assert list(tmp_path.iterdir()) == []

    def test_because_the_file_is_something_else(self, tmp_path):
        (tmp_path / "thesis.txt").write_text("mine " * 1000)
        line = self.one_line(open_tiny, f"sqlite:///{tmp_path}/thesis.txt")
        assert "(file is not a database)" in line
        assert (tmp_path / "thesis.txt").read_text() == "mine " * 1000

    @pytest.mark.parametrize("address", ["study.db", "sqlite://", "redis://localhost"])
    def test_because_the_address_is_of_no_shared_database(self, address):
        line = self.one_line(lambda url: create_study(grid(), url), address)
        assert line.endswith("expected sqlite:///study.db or postgresql://user@host/database")


def open_tiny(url):
    with open_study(url, "tiny"):
        pass


def test_joining_a_study_that_is_not_there_names_those_that_are(sqlite):
    create_study(grid(), sqlite)
    with (
        pytest.raises(InputError, match=r"study paper: not in sqlite:.*; it holds tiny"),
        open_study(sqlite, "paper"),
    ):
        pass


def test_a_study_that_others_made_is_left_alone(sqlite):
    storage = optuna.storages.RDBStorage(sqlite)
    optuna.create_study(storage=storage, study_name="tiny").ask()
    storage.engine.dispose()
    with pytest.raises(InputError, match=r"schema: stored nothing, asked 'isthmus\.study/1'"):
        create_study(grid(), sqlite)
    with pytest.raises(InputError, match="not made by this version of isthmus"):
        open_tiny(sqlite)


def test_tables_hold_the_cells_and_their_plain_figures(sqlite):
    create_study(grid(2), sqlite)
    with open_study(sqlite, "tiny") as study:
        finish_all(study)
        found = records(study)
    assert table_csv(records_table(found)).splitlines() == [
        "depth,width,placement,ratio,data,recipe,epochs,seed,judged,accuracy,bytes,seconds",
        "18,16,cut,1,digits,fast,6,0,test,1.0,64,1.5",
        "18,16,cut,2,digits,fast,6,0,test,0.5,32,1.5",
    ]
    assert table_markdown(records_table(found)).splitlines()[2] == (
        "| 18 | 16 | cut | 1 | digits | fast | 6 | 0 | test | 1.0 | 64 | 1.5 |"
    )


def test_a_file_of_records_that_is_damaged_names_the_line(tmp_path, sqlite):
    path = tmp_path / "records.jsonl"
    create_study(grid(2), sqlite)
    with open_study(sqlite, "tiny") as study:
        finish_all(study)
        write_records(path, records(study))
    lines = path.read_text().splitlines()
    path.write_text(f"{lines[0]}\n{lines[1][:-9]}\n")
    with pytest.raises(InputError, match=r"records\.jsonl: line 2: not JSON"):
        read_records(path)
    path.write_text(f"{lines[0]}\n{lines[0]}\n")
    with pytest.raises(InputError, match=r"line 2: resnet18/.* stands there twice"):
        read_records(path)
