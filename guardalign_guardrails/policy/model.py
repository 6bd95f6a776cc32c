"""What is unsafe and what to do about it.

A policy is data: categories with their text anchors, thresholds, per-source rules, failure rules. One file drives every
integration. This module reads, checks, writes and fingerprints policies; it scores nothing and touches no image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    Field,
    PlainSerializer,
    field_validator,
    model_validator,
)

from guardalign_guardrails.actions import SOURCES, DeliveryRule, Source
from guardalign_guardrails.errors import PolicyError
from guardalign_guardrails.images.consumers import DEFAULT as DEFAULT_CONSUMERS
from guardalign_guardrails.images.consumers import load_consumers
from guardalign_guardrails.policy.detection import RegionConfig, ScoringConfig
from guardalign_guardrails.policy.fetch import FetchRules
from guardalign_guardrails.policy.file import hint, parse
from guardalign_guardrails.policy.rules import FailureRules, FrozenModel, Masking, SourceRule, Thresholds, read_only
from guardalign_guardrails.verdict import Verdict


class Anchors(FrozenModel):
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


class Policy(FrozenModel):
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
        delivery: Which pixels of an image that may pass go on. ``auto``: the image as it came if all readers see the
            same in it and all of it was looked at, else the guard's own reading of it (canonical). ``canonical``:
            always the guard's own reading. ``original``: always the image as it came, whatever else it may show.
        consumers: Names of the models that images may go to, see `guardalign_guardrails.images.consumers`; what they do
            to an image decides how closely it is looked at, and which ways of resizing are looked for.
        max_tiles: Most tiles of one image that are looked at in full detail beside the whole, each of which costs
            as much as the whole. What would need more is looked at, and delivered, at a smaller size.
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
        Mapping[str, Category], AfterValidator(read_only), PlainSerializer(dict, return_type=dict[str, Any])
    ]
    benign: Anchors
    thresholds: Thresholds = Thresholds(flag=0.05, prefix=0.03, mask=0.02)
    sources: Annotated[
        Mapping[Source, SourceRule], AfterValidator(read_only), PlainSerializer(dict, return_type=dict[str, Any])
    ] = Field(default_factory=dict)
    failure: FailureRules = FailureRules()
    fetch: FetchRules | None = None
    masking: Masking = Masking()
    delivery: DeliveryRule = "auto"
    consumers: tuple[str, ...] = DEFAULT_CONSUMERS
    max_tiles: int = Field(default=4, ge=0, le=64)
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

    @field_validator("consumers")
    @classmethod
    def _consumers_are_known(cls, consumers: tuple[str, ...]) -> tuple[str, ...]:
        try:
            load_consumers(consumers)
        except PolicyError as error:
            raise ValueError(str(error)) from error
        return consumers

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

    def delivery_for(self, source: Source) -> DeliveryRule:
        """Which pixels of an image from this source go on if it may pass."""
        return self.sources.get(source, SourceRule()).delivery or self.delivery

    def refusal_for(self, verdict: Verdict) -> str:
        """The answer in a model's place, given the verdict that keeps it from answering."""
        return self.refusal if verdict.finding == "unsafe" else self.refusal_unchecked

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
        """SHA-256 over the anchors and templates alone: what a reference profile and cached features depend on."""
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
