"""A claim as its YAML states it, and when the YAML was last changed: :class:`Claim` and :class:`Registration`."""

import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from normlab.claims.criteria import Criterion
from normlab.errors import ConfigError, first_line, nearest, require
from normlab.option_folders import PACKAGED_CONF
from normlab.results.provenance import digest, git
from normlab.stats.design import MODEL, PLAIN

GROUP = "claim"
ABOUT = ("optimization", "generalization", "landscape", "initialization", "dynamics")
NEUTRAL = (
    "logger",
    "trainer.threads",
    "trainer.compile",
    "retrain",
    "hydra.sweep.dir",
    "hydra.launcher",
    "hydra/launcher",
)
"""Keys that change neither the runs of a claim nor its verdict."""
COMMON = ("bn", "ln", "rms", PLAIN)
"""The normalizers beside which a profile shows another one."""
ARM_KEYS = ("arm", "baseline")
"""Keys of a criterion that name an arm."""
BUDGETS = ("quick", "full")
DESIGN_SEEDS = 1000
"""Seeds below this number may be used to design a claim; a claim reports those from this number on."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A published statement, with the sweep that tests it and the criterion that decides.

    Attributes:
        name: the name of the file.
        order: the place in lists and on the page.
        statement: the statement, verbatim or close.
        source: authors, year, title, arXiv number, figure or table.
        about: one of ``ABOUT``.
        protocol: the sweep in words.
        criterion: a node with the ``_target_`` of a criterion.
        compare: the compared factor; None: ``model``.
        controls, confounds: sentences.
        power: the power at the reporting replicates, from design seeds; starts with "underpowered" if below 80 %.
        minutes: the expected duration on two cores.
        replace: the arm that another normalizer can replace; None if none can be replaced.
        weakness: True if the claim speaks against the arm in ``replace`` where it holds.
        fresh: overrides for a table on which the claim was not designed; None for claims not about generalization.
        full: overrides of the full budget.
        arms: further arms, each of which is judged in place of ``replace``; empty in the registered protocol.
    """

    name: str
    order: int = 99
    statement: str
    source: str
    about: str
    protocol: str
    criterion: Mapping[str, Any]
    compare: str | None = None
    controls: Sequence[str] = ()
    confounds: Sequence[str] = ()
    power: str
    minutes: float
    replace: str | None = None
    weakness: bool = False
    fresh: Mapping[str, Any] | None = None
    full: Mapping[str, Any] = field(default_factory=dict)
    arms: Sequence[str] = ()

    def __post_init__(self) -> None:
        require(self.about in ABOUT, "claim.about", f"one of {', '.join(ABOUT)}", self.about)
        for name in ("controls", "confounds", "arms"):
            value = getattr(self, name)
            require(isinstance(value, list | tuple), f"claim.{name}", "a list", repr(value))
        require(
            not self.arms or self.replace is not None, "claim.arms", "empty without claim.replace", list(self.arms)
        )
        self.criterion_for(self.replace)

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> "Claim":
        """Return the claim of a node of a configuration.

        Raises:
            ConfigError: for an unknown or missing key, or a criterion that cannot be made.
        """
        known = {each.name: each for each in fields(cls)}
        for key in node:
            if key not in known:
                raise ConfigError(f"claim.{key}: no such key; did you mean claim.{nearest(key, known)}?")
        for name, each in known.items():
            optional = each.default is not MISSING or each.default_factory is not MISSING
            require(optional or node.get(name) is not None, f"claim.{name}", "given", "nothing")
        return cls(**{key: value for key, value in node.items() if value is not None})

    def criterion_for(self, arm: str | None) -> Criterion:
        """Return the criterion with an arm in place of ``replace``.

        Raises:
            ConfigError: if the criterion cannot be made from its node.
        """
        is_registered = arm == self.replace and not self.arms
        node = self.criterion if is_registered else self.with_arm(self.criterion, arm)
        try:
            criterion = instantiate({"_convert_": "all", **node})
        except InstantiationException as error:
            raise ConfigError(f"claim.criterion: {first_line(error.__cause__ or error)}") from error
        require(isinstance(criterion, Criterion), "claim.criterion", "a criterion of normlab.claims", node)
        result: Criterion = criterion
        return result

    def with_arm(self, node: Any, arm: str | None) -> Any:
        """Return a part of the criterion's node with an arm in place of ``replace``.

        If the normalizers are not compared, the arm is the model of each panel.
        """
        if isinstance(node, list | tuple):
            return [self.with_arm(each, arm) for each in node]
        if not isinstance(node, Mapping):
            return node
        changed: dict[str, Any] = {}
        for key, value in node.items():
            if key in ARM_KEYS and value == self.replace:
                changed[key] = arm
            elif key in ARM_KEYS and isinstance(value, list) and self.replace in value:  # of Each
                changed[key] = [arm]
            else:
                changed[key] = self.with_arm(value, arm)
        if self.compare not in (None, MODEL) and "metric" in changed:
            panels = [key for key in ("panel", "other") if key == "panel" or isinstance(changed.get(key), Mapping)]
            changed |= {key: {**(changed.get(key) or {}), MODEL: arm} for key in panels}
        return changed

    @cached_property
    def compared_arms(self) -> set[str]:
        """The arms that the criterion names."""
        return set(named_arms(self.criterion))

    def deviations(self, overrides: Iterable[str]) -> tuple[str, bool, list[str]]:
        """Compare the overrides of a command with the protocol.

        Args:
            overrides: of the command, without ``claim=…`` itself.

        Returns:
            The budget, whether the command is that for the fresh table, and the overrides beyond the protocol.
        """
        given = [word for word in overrides if not is_neutral(word)]
        if self.arms:
            given = [
                word for word in given if not word.startswith((f"{MODEL}=", "+claim.arms=", "hydra.sweeper."))
            ]
        options = [
            (budget, fresh, self.protocol_overrides(budget, fresh))
            for budget in BUDGETS
            for fresh in ((False, True) if self.fresh else (False,))
        ]
        beyond = [[word for word in given if word not in words] for _, _, words in options]
        absent = [[word for word in words if word not in given] for _, _, words in options]
        best = min(range(len(options)), key=lambda k: (len(beyond[k]) + len(absent[k]), k))
        return options[best][0], options[best][1], [*beyond[best], *(f"without {word}" for word in absent[best])]

    def protocol_overrides(self, budget: str = "quick", fresh: bool = False) -> list[str]:
        """Return the overrides of a budget, on the table of the claim or on the fresh table."""
        values = {**(self.full if budget == "full" else {}), **((self.fresh or {}) if fresh else {})}
        return [f"{key}={override_text(value)}" for key, value in values.items()]


def named_arms(node: Any) -> Iterable[str]:
    """Yield the arms that a criterion's node names."""
    for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
        if key in ARM_KEYS:
            yield from value if isinstance(value, list) else [value]
        elif isinstance(value, Mapping | list | tuple):
            yield from named_arms(value)


def override_text(value: Any) -> str:
    """Return a value of YAML as in an override.

    >>> override_text(None), override_text(True), override_text([64, 64]), override_text("range(4)")
    ('null', 'true', '[64,64]', 'range(4)')
    """
    if isinstance(value, list):
        return f"[{','.join(map(override_text, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def is_neutral(word: str) -> bool:
    """Return True if an override changes neither the runs of a claim nor its verdict.

    >>> is_neutral("hydra.sweep.dir=outputs/a"), is_neutral("logger=csv"), is_neutral("trainer.max_epochs=1")
    (True, True, False)
    """
    key = word.partition("=")[0].lstrip("+~")
    return any(key == name or key.startswith((f"{name}.", f"{name}/")) for name in NEUTRAL)


@dataclass(frozen=True)
class Registration:
    """The file of a claim, as it was when the claim was judged.

    Attributes:
        sha256: the hash of the file.
        commit: the commit that last changed the file; the version of normlab for a file of the installed package;
            None if it is not committed.
        date: the date of that commit.
        modified: True if the file differs from that commit.
    """

    sha256: str
    commit: str | None
    date: str | None
    modified: bool

    @classmethod
    def of(cls, path: Path) -> "Registration":
        """Return the registration of a claim's file."""
        sha256, folder = digest(path), path.parent
        try:
            log = git("log", "-1", "--format=%h %cs", "--", path.name, folder=folder)
            modified = bool(git("status", "--porcelain", "--", path.name, folder=folder))
        except (OSError, subprocess.CalledProcessError):
            is_packaged = path.resolve().is_relative_to(PACKAGED_CONF.resolve())
            return cls(sha256, f"v{version('normlab')}" if is_packaged else None, None, not is_packaged)
        commit, _, date = log.partition(" ")
        return cls(sha256, commit or None, date or None, modified or not commit)


def read_claim(path: Path) -> tuple[Claim, dict[str, Any]]:
    """Read the YAML of a claim; return the claim and the parameters of its sweep: ``params`` and ``grids``.

    Raises:
        ConfigError: if the file is no claim.
    """
    try:
        values = yaml.safe_load(path.read_text())
        claim = Claim.of(values[GROUP])
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} must hold a claim, got {type(error).__name__}: {first_line(error)}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    require(claim.name == path.stem, f"{path}: claim.name", f"the name of the file, {path.stem}", claim.name)
    return claim, (values.get("hydra") or {}).get("sweeper") or {}


def read_claims(folder: Path) -> dict[str, tuple[Claim, dict[str, Any]]]:
    """Read all claims of a folder of YAMLs, by name, in their order."""
    read = [read_claim(path) for path in sorted(folder.glob("*.yaml"))]
    return {claim.name: (claim, sweep) for claim, sweep in sorted(read, key=lambda pair: pair[0].order)}
