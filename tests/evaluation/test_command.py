"""``eval.py`` as typed: selection of runs, and mistakes."""

import shutil
from pathlib import Path

import pytest

RUN = "o/model=bn,seed=0"
OTHERS = ["m/model=bn,seed=1", "m/model=nobn,seed=0"]


def test_list_of_runs_keeps_order_and_commas_of_names(trained, evaluated):
    trained(RUN, *OTHERS)
    word = f"run=[{OTHERS[1]},'{RUN}', {OTHERS[0]},{RUN}]"
    content, _ = evaluated(word, "statistics=batch")
    assert [run["folder"] for run in content["runs"]] == [OTHERS[1], RUN, OTHERS[0]]
    assert Path("eval-statistics=batch/eval.csv").exists()
    assert content["command"][2:] == [word, "statistics=batch"]


def test_brackets_of_names_are_literal_in_patterns(trained, evaluated):
    trained(RUN)
    for name in ("net.hidden=[8,8]", "net.hidden=8"):
        shutil.copytree(RUN, f"sweep/{name}")
    content, _ = evaluated("run=sweep/net.hidden=[8*")
    assert [run["folder"] for run in content["runs"]] == ["sweep/net.hidden=[8,8]"]


def test_pattern_sorts_runs_by_number(trained, evaluated):
    trained(*(f"m/model=bn,seed={seed}" for seed in (0, 10, 1)))
    content, _ = evaluated("run=**/model=bn,seed=*")
    assert [run["folder"] for run in content["runs"]] == [f"m/model=bn,seed={seed}" for seed in (0, 1, 10)]


def test_pattern_leaves_out_runs_without_checkpoint(trained, run_eval, evaluated):
    trained(*OTHERS)
    (Path(OTHERS[0]) / "checkpoints/best.pt").unlink()
    content, out = evaluated("run=m/*")
    assert [run["folder"] for run in content["runs"]] == OTHERS[1:]
    assert f"{OTHERS[0]} is left out: it has no checkpoints/best.pt" in out
    (Path(OTHERS[1]) / "checkpoints/best.pt").unlink()
    expected = "error: run=m/*: none of the 2 runs has checkpoints/best.pt; train them first"
    assert run_eval("run=m/*").err.strip().splitlines() == [expected]


def test_error_in_one_of_several_runs_names_it(trained, run_eval):
    trained(*OTHERS)
    expected = f"error: {OTHERS[1]}: model.norm.eps: no such key in the run; did you mean model.norm?"
    assert run_eval("run=m/*", "model.norm.eps=0.1").err.strip() == expected


def test_help_shows_usage(run_eval):
    outcome = run_eval("--help")
    assert outcome.code == 0
    assert "python eval.py 'run=outputs/mine/*' checkpoint=last" in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 115


OF_RUNS = {
    "": "run must be the folder of a run, such as run=outputs/mine/model=bn, got nothing",
    "o/model=bn,seed=0": "got o/model=bn,seed=0 without run=; write run=o/model=bn,seed=0",
    "o/x": "run must be the folder of a run, such as run=outputs/mine/model=bn, got o/x, which does not exist",
    "run=": "run must be the folder of a run, such as run=outputs/mine/model=bn, got nothing",
    "run=nope": "run must be the folder of a run, got nope, which does not exist; run=outputs/… is a folder with",
    "run=o": "run must be the folder of a run, got o; its runs are 'run=o/*'",
    "run=o/model=bn,seed=0/checkpoints": "run must be the folder of a run, got o/model=bn,seed=0/checkpoints;",
    "run=x*": "run must be a pattern that matches runs, got x*;",
    "run=[o/model=bn,seed=0,x]": "run must be the folder of a run, got x, which does not exist",
    "run=a run=b": "run must be given once; write run=[A,B] for several, got a and b",
    "-m run=o": "-m: an evaluation is no sweep; several runs are run=[A,B] or 'run=outputs/mine/*'",
    "--cfg=job run=o": "--cfg: an evaluation has no such option; leave it out",
    "--config-dir=nope run=o": "--config-dir must be a folder, got nope",
    "-x run=o": "-x: no such option; python eval.py --help",
}
OF_OVERRIDES = {
    "checkpoint=first": "checkpoint must be best or last, got first",
    "optimizer.lr=0.1": "optimizer.lr has no effect in an evaluation, which uses data, net, model,",
    "optimizer=sgd": "optimizer has no effect in an evaluation",
    "trainer.max_epochs=9": "trainer.max_epochs has no effect in an evaluation",
    "retrain=true": "retrain has no effect in an evaluation",
    "experiment=overfit": "experiment has no effect in an evaluation",
    "hydra.run.dir=x": "hydra.run.dir has no effect in an evaluation",
    "net.dropout=0.5": "net.dropout has no effect on a trained net in evaluation mode; leave it out",
    "~scheduler": "scheduler has no effect in an evaluation",
    "replicate=seed seed=3": "seed has no effect: with replicate=seed the data depend on data.seed; use",
    "modle=nobn": "modle: no such key; did you mean model?",
    "chekpoint=last": "chekpoint: no such key; did you mean checkpoint?",
    "net.hiden=[3]": "net.hiden: no such key in the run; did you mean net.hidden?",
    "data=digts": "data=digts: no such option; did you mean digits? There are ",
    "+data.foo=1": "data.foo: normlab.data.Fitness takes no such argument",
    "~data.foo": "~data.foo: no such key; data has samples, target, ",
    "~metrics": "metrics is missing, but every run needs it",
    "statistics": "cannot read statistics: write key=value, without spaces",
    "statistics=moving": "statistics must be running, reestimated or batch, got moving",
    "statistics=batch,running": "statistics must be one value, got statistics=batch,running; run eval.py for each",
    "statistics=batch statistics=running": "statistics is set twice, by statistics=batch and statistics=running",
    "model=[bn,nobn]": "model=[bn,nobn]: a run has one model",
    "data.batch_size=601": "data.batch_size must be at most the 600 training samples, got 601",
    "trainer.accelerator=tpu": "trainer.accelerator must be cpu or auto on this machine, got tpu",
    "data=digits": (
        "error: o/model=bn,seed=0/checkpoints/best.pt is of another net: hidden1.linear.weight has shape (64, 3) "
        "in the checkpoint and shape (64, 64) in the net of this configuration; leave out data=digits"
    ),
    "net.hidden=[64,64]": "hidden2.linear.weight has no such tensor in the checkpoint and shape (64, 64) in",
    "model=nobn": "hidden1.norm.weight has shape (64,) in the checkpoint and no such tensor in the net of this",
    "net=cnn": "net=cnn takes images of shape (channels, height, width)",
}
MISTAKES = {**OF_RUNS, **{f"run={RUN} {words}": answer for words, answer in OF_OVERRIDES.items()}}


@pytest.mark.parametrize(("mistake", "answer"), MISTAKES.items(), ids=MISTAKES)
def test_mistake_gives_one_line_and_writes_nothing(trained, run_eval, digests, mistake, answer):
    trained(RUN)
    before = digests()
    outcome = run_eval(*mistake.split())
    assert outcome.code == 1
    (line,) = outcome.err.strip().splitlines()
    assert line.startswith("error: ")
    assert answer in line
    assert not outcome.out
    assert digests() == before
