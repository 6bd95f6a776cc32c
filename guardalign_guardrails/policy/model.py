"""What is unsafe and what to do about it.

A policy is data: categories with their text anchors, thresholds, per-source rules, failure rules. One file drives every
integration. This module reads, checks, writes and fingerprints policies; it scores nothing and touches no image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    field_validator,
    model_validator,
)
from typing_extensions import Self

from guardalign_guardrails.actions import LADDER, SOURCES, Action, FailureAction, Source, severest
from guardalign_guardrails.errors import PolicyError
from guardalign_guardrails.policy.detection import RegionConfig, ScoringConfig
from guardalign_guardrails.policy.fetch import FetchRules
from guardalign_guardrails.policy.file import hint, parse
from guardalign_guardrails.verdict import Verdict


def _freeze(value: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(value))


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def __reduce__(self) -> tuple[Any, ...]:
        # The read-only mappings cannot be pickled as they are.
        return type(self).model_validate, (self.model_dump(mode="json"),)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self


class Thresholds(_Frozen):
    """From which point each action is taken; None never takes it.

    With ``kind: false_positive_rate`` (default) a number is the share of benign images that may be acted on: the action
    is taken when the calibrated p-value is at or below it, so a severer action has a smaller number. With
    ``kind: score`` it is a raw score, taken at or above it, so a severer action has a larger number; no calibration
    profile is needed then.
    """

    kind: Literal["false_positive_rate", "score"] = "false_positive_rate"
    flag: float | None = None
    prefix: float | None = None
    mask: float | None = None
    route: float | None = None
    block: float | None = None

    @model_validator(mode="after")
    def _severer_is_rarer(self) -> Thresholds:
        is_rate = self.kind == "false_positive_rate"
        previous: tuple[str, float] | None = None
        for action, value in self.items():
            if is_rate and not 0 < value < 1:
                raise ValueError(f"{action} is a false-positive rate and must lie between 0 and 1, got {value}")
            if previous and (value > previous[1] if is_rate else value < previous[1]):
                side = "at most" if is_rate else "at least"
                raise ValueError(f"{action} ({value}) must be {side} {previous[0]} ({previous[1]}): it is severer")
            previous = (action, value)
        return self

    def items(self) -> Iterator[tuple[Action, float]]:
        """The actions that are set, mildest first, with their thresholds."""
        for action in LADDER[1:]:
            value = getattr(self, action)
            if value is not None:
                yield action, value

    def action_for(self, score: float, p_value: float | None) -> Action:
        """The severest action whose threshold is met.

        Args:
            score: Raw score, higher is more unsafe.
            p_value: Calibrated p-value in (0, 1], or None when no profile was used.

        Raises:
            ValueError: The thresholds are rates and ``p_value`` is None.
        """
        met: list[Action] = []
        for action, value in self.items():
            if self.kind == "score":
                is_met = score >= value
            elif p_value is None:
                raise ValueError("false-positive-rate thresholds need a p-value")
            else:
                is_met = p_value <= value
            if is_met:
                met.append(action)
        return severest(*met)


class Anchors(_Frozen):
    """Texts that stand for a meaning.

    Attributes:
        concepts: Noun phrases; each is written into every template of the policy and the embeddings are averaged.
        descriptions: Whole descriptions, embedded as they are.
    """

    concepts: tuple[str, ...] = ()
    descriptions: tuple[str, ...] = ()

    @field_validator("concepts", "descriptions")
    @classmethod
    def _texts_are_distinct(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        if any(not text.strip() for text in texts):
            raise ValueError("an anchor text must not be empty")
        if len(set(texts)) != len(texts):
            raise ValueError("anchor texts must be distinct")
        return texts

    @model_validator(mode="after")
    def _has_an_anchor(self) -> Anchors:
        if not self.texts:
            raise ValueError("give at least one concept or description")
        return self

    @property
    def texts(self) -> tuple[str, ...]:
        """Concepts, then descriptions: one name per anchor, in the order of the features."""
        return self.concepts + self.descriptions


class Category(Anchors):
    """One kind of unsafe content.

    Attributes:
        title: What people read; None for the category's key.
        thresholds: Replaces the policy's own for this category; None to keep them.
    """

    title: str | None = None
    thresholds: Thresholds | None = None


class SourceRule(_Frozen):
    """What differs for images of one source.

    Attributes:
        thresholds: Replaces the policy's own for this source; None to keep them.
        categories: Replaces the thresholds of single categories for this source.
        at_least: Once any action but ``allow`` is due, it is at least this one.
        at_most: No action on a finding is severer than this one. Failures (unreadable images, errors) are not softened.
    """

    thresholds: Thresholds | None = None
    categories: Annotated[
        Mapping[str, Thresholds], AfterValidator(_freeze), PlainSerializer(dict, return_type=dict[str, Any])
    ] = Field(default_factory=dict)
    at_least: Action = "allow"
    at_most: Action = "block"

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> SourceRule:
        if LADDER.index(self.at_least) > LADDER.index(self.at_most):
            raise ValueError(f"at_least ({self.at_least}) must not be severer than at_most ({self.at_most})")
        return self

    def limit(self, action: Action) -> Action:
        """Bring an action on a finding into this source's range."""
        if action == "allow":
            return action
        return min(severest(action, self.at_least), self.at_most, key=LADDER.index)


class FailureRules(_Frozen):
    """What happens when an image cannot be judged.

    Attributes:
        uninspectable: The image cannot be opened (broken, unknown format, too large).
        on_error: Detection failed with an error.
        on_timeout: Detection took longer than ``timeout_s``.
        timeout_s: Seconds that detection of one call may take; None for no limit.

    ``block`` lets nothing pass, ``mask`` puts a plain image in its place, ``allow`` lets it pass unseen.
    """

    uninspectable: FailureAction = "block"
    on_error: FailureAction = "block"
    on_timeout: FailureAction = "block"
    timeout_s: float | None = Field(default=None, gt=0)


class Masking(_Frozen):
    """How unsafe regions are covered and what follows.

    Attributes:
        fill: ``solid`` leaves nothing to recover; ``blur`` and ``pixelate`` keep colours for orientation.
        colour: RGB of the solid fill, 0 to 255.
        feather: Width of the soft edge outside the boxes, as a share of a box's shorter side.
        extent: A region is covered when its heat is at least this share of the hottest region's.
        max_coverage: If more than this share of the image would be covered, ``escalate_to`` is taken instead.
        rescore: Score the masked image again before it passes.
        escalate_to: Action when the masked image is still unsafe, or the mask would cover too much.
    """

    fill: Literal["solid", "blur", "pixelate"] = "solid"
    colour: tuple[int, int, int] = (0, 0, 0)
    feather: float = Field(default=0.04, ge=0, le=1)
    extent: float = Field(default=0.12, gt=0, le=1)
    max_coverage: float = Field(default=0.9, gt=0, le=1)
    rescore: bool = True
    escalate_to: Literal["route", "block"] = "block"

    @field_validator("colour")
    @classmethod
    def _colour_is_rgb(cls, colour: tuple[int, int, int]) -> tuple[int, int, int]:
        if not all(0 <= channel <= 255 for channel in colour):
            raise ValueError("colour channels lie between 0 and 255")
        return colour


class Policy(_Frozen):
    """Categories, thresholds and rules; see ``policy/default.yaml`` for a complete, commented example.

    Attributes:
        name: For reports.
        version: For reports; the fingerprint, not the version, decides whether two policies are the same.
        mode: ``enforce`` acts; ``monitor`` finds and reports but lets everything pass.
        prefix: Safety prefix that the actions ``prefix`` and ``mask`` give to the model.
        prefix_when: ``finding`` gives the prefix with these actions only, ``image`` whenever an image is in the chat,
            ``always`` to text-only chats too.
        refusal: Answer of components that refuse instead of a model, because of an unsafe image.
        refusal_unchecked: The same because of something that could not be checked.
        templates: Sentences with one ``{}`` into which concepts are written.
        categories: Unsafe categories by key.
        benign: Anchors of harmless content.
        thresholds: For categories and sources that have none of their own.
        sources: Rules of single sources.
        failure: Failure rules.
        fetch: From where images given as URLs are fetched to be checked; None never fetches.
        masking: Masking rules.
        regions: How to cut images; None for what suits the encoder.
        scoring: How to score.

    The thresholds that count for a category and source are the first found of: the source's for that category, the
    category's, the source's, the policy's.
    """

    name: str = "custom"
    version: str = "1"
    mode: Literal["enforce", "monitor"] = "enforce"
    prefix: str = "As an AI assistant, "
    prefix_when: Literal["finding", "image", "always"] = "finding"
    refusal: str = "I can't help with this: an image in it was blocked by the safety policy."
    refusal_unchecked: str = "I can't help with this: something in it could not be checked by the safety policy."
    templates: tuple[str, ...] = ("{}", "a photo of {}")
    categories: Annotated[
        Mapping[str, Category], AfterValidator(_freeze), PlainSerializer(dict, return_type=dict[str, Any])
    ]
    benign: Anchors
    thresholds: Thresholds = Thresholds(flag=0.05, prefix=0.03, mask=0.02)
    sources: Annotated[
        Mapping[Source, SourceRule], AfterValidator(_freeze), PlainSerializer(dict, return_type=dict[str, Any])
    ] = Field(default_factory=dict)
    failure: FailureRules = FailureRules()
    fetch: FetchRules | None = None
    masking: Masking = Masking()
    regions: RegionConfig | None = None
    scoring: ScoringConfig = ScoringConfig()

    @field_validator("templates")
    @classmethod
    def _templates_have_a_slot(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        if not templates:
            raise ValueError("give at least one template, '{}' for none")
        for template in templates:
            if template.count("{}") != 1 or "{" in template.replace("{}", ""):
                raise ValueError("a template needs exactly one {} and no other brace")
        return templates

    @model_validator(mode="after")
    def _names_agree(self) -> Policy:
        if not self.categories:
            raise ValueError("give at least one category")
        for source, rule in self.sources.items():
            for name in rule.categories:
                if name not in self.categories:
                    raise ValueError(f"sources.{source}.categories: no category {name!r}{hint(name, self.categories)}")
        return self

    def thresholds_for(self, category: str, source: Source) -> Thresholds:
        """The thresholds that count for one category and source.

        Under ``scoring: paper`` the policy's own are not asked: a region whose raw cost is at most tau is masked
        (GuardAlign eqs. 10-11).
        """
        if self.scoring.method == "paper":
            return Thresholds(kind="score", mask=-self.scoring.paper_tau)
        rule = self.sources.get(source, SourceRule())
        return (
            rule.categories.get(category) or self.categories[category].thresholds or rule.thresholds or self.thresholds
        )

    def refusal_for(self, verdict: Verdict) -> str:
        """The answer in a model's place, given the verdict that keeps it from answering."""
        return self.refusal_unchecked if verdict.finding == "unchecked" else self.refusal

    @property
    def needs_profile(self) -> bool:
        """Whether any threshold is a false-positive rate."""
        return any(
            self.thresholds_for(category, source).kind == "false_positive_rate"
            for category in self.categories
            for source in SOURCES
        )

    @property
    def smallest_rate(self) -> float | None:
        """The smallest false-positive rate any threshold asks for; None if all thresholds are scores."""
        rates = [
            rate
            for category in self.categories
            for source in SOURCES
            if (thresholds := self.thresholds_for(category, source)).kind == "false_positive_rate"
            for _, rate in thresholds.items()
        ]
        return min(rates, default=None)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that can change a verdict (name and version cannot)."""
        return _digest(self.model_dump(mode="json", exclude={"name", "version"}))

    @property
    def anchor_fingerprint(self) -> str:
        """SHA-256 over the anchors and templates alone: what a calibration profile and cached features depend on."""
        return _digest(
            {
                "templates": self.templates,
                "benign": self.benign.model_dump(mode="json"),
                "categories": {k: [c.concepts, c.descriptions] for k, c in self.categories.items()},
            }
        )

    @classmethod
    def default(cls) -> Policy:
        """The policy that ships with the package."""
        return cls.from_yaml(resources.files("guardalign_guardrails.policy").joinpath("default.yaml").read_text())

    @classmethod
    def load(cls, path: Path | str) -> Policy:
        """Read a policy from a ``.yaml``, ``.yml`` or ``.json`` file.

        Raises:
            PolicyError: The file is missing, no YAML or JSON, or no valid policy.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PolicyError(
                f"Cannot read the policy file {path} ({type(error).__name__}); give the path of a YAML or JSON file."
            ) from error
        return cls.from_yaml(text)

    @classmethod
    def from_yaml(cls, text: str) -> Policy:
        """Read a policy from YAML or JSON text (JSON is YAML).

        A policy whose ``extends`` is ``default`` starts from the shipped one: what it names is added or replaced,
        mappings key by key; lists and ``thresholds``, whose entries make sense only together, as a whole.

        Raises:
            PolicyError: The text is no YAML, or no valid policy; the message names each field at fault.
        """
        return parse(text, cls, lambda: cls.default().to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The policy as plain data, without what is left at its default of None."""
        return self.model_dump(mode="json", exclude_none=True)

    def to_yaml(self) -> str:
        """The policy as YAML that `from_yaml` reads back to an equal policy."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=110)

    def to_json(self) -> str:
        """The policy as JSON that `from_yaml` reads back to an equal policy."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
