"""From images to verdicts and images to pass on: the one entry point that every integration calls.

Order of work: read once, look up, wait for a place, decode, assess what is new in few batches, report. Configuration
faults (no encoder, no profile) are raised; what goes wrong with a single image becomes that image's verdict, by the
policy's failure rules. Content never appears in a log record or an exception.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import platformdirs
from typing_extensions import Self

from guardalign_guardrails.actions import SOURCES, Source
from guardalign_guardrails.detection.detector import Detector
from guardalign_guardrails.detection.encoders import Encoder, load_encoder
from guardalign_guardrails.detection.reference import Profile
from guardalign_guardrails.detection.scoring import Scorer
from guardalign_guardrails.errors import GuardAlignError, ImageDecodeError
from guardalign_guardrails.fetch import Fetcher
from guardalign_guardrails.guarding.admission import AdmissionQueue, Allowance
from guardalign_guardrails.guarding.assess import assess
from guardalign_guardrails.guarding.cache import UnderWay, VerdictCache
from guardalign_guardrails.guarding.delivery import DeliveryPlan, Sight, image_key, plan_delivery
from guardalign_guardrails.guarding.forks import mark_use
from guardalign_guardrails.guarding.outcome import Failure, Outcome
from guardalign_guardrails.guarding.pickles import check_pickles
from guardalign_guardrails.guarding.profile import fitting_profile
from guardalign_guardrails.guarding.reading import Key, OpenedImage, ReadImage, SeenImage, budgeted, read_all
from guardalign_guardrails.guarding.report import Reporter
from guardalign_guardrails.guarding.result import CheckResult, ImageOutput
from guardalign_guardrails.guarding.steps import Steps, afinish, finish
from guardalign_guardrails.images import ImageLimits, ImageSource, decode
from guardalign_guardrails.images.consumers import load_consumers
from guardalign_guardrails.policy import Policy, SourceRule

logger = logging.getLogger(__name__)

# Pixels that are held and scored together: 64 MB, as Pillow spends four bytes on each.
_PIXELS_AT_ONCE = 16_000_000


class Guard:
    """Checks images against a policy.

    Nothing is loaded until the first check (or `prepare`). Safe to use from several threads and event loops at once.
    A context manager: `close` ends its threads. It pickles without what it has loaded and found, if what it was given
    pickles.

    Args:
        policy: A policy, or the path of a policy file; None for the one that ships with the package.
        encoder: An encoder, or its name (see `guardalign_guardrails.detection.encoders.load_encoder`).
        profile: A reference profile, or the path of one; None to look among the user's and the shipped ones.
        limits: What an image may cost to decode.
        cache_dir: Folder for anchor features; None for the user's cache folder.
        cache: Verdict cache, possibly shared with other guards; None for one of its own.
        fetcher: Fetches image URLs for integrations (the guard itself fetches nothing); None for what the
            policy's ``fetch`` rules say, which is none by default.
        scorer: How to score, for comparisons; None for what the policy says.
        max_concurrent: Calls that decode and score at once, each in a thread of the guard; others wait, as the policy's
            ``failure`` rules say. It bounds the guard's memory.

    Raises:
        ValueError: ``max_concurrent`` is below 1.
        PolicyError: The policy file cannot be read.
        FetchUnavailable: The policy wants URLs fetched and httpcore is not installed.
    """

    def __init__(
        self,
        policy: Policy | Path | str | None = None,
        encoder: Encoder | str = "offline",
        *,
        profile: Profile | Path | str | None = None,
        limits: ImageLimits | None = None,
        cache_dir: Path | None = None,
        cache: VerdictCache[Outcome] | None = None,
        fetcher: Fetcher | None = None,
        scorer: Scorer | None = None,
        max_concurrent: int = 2,
    ) -> None:
        self.policy = Policy.load(policy) if isinstance(policy, Path | str) else policy or Policy.default()
        self.limits = limits or ImageLimits()
        self.cache: VerdictCache[Outcome] = VerdictCache() if cache is None else cache
        # The image that some bytes stand for.
        self._seen: VerdictCache[SeenImage] = VerdictCache()
        self.detector = Detector(
            self.policy,
            load_encoder(encoder) if isinstance(encoder, str) else encoder,
            cache_dir or platformdirs.user_cache_path("guardalign"),
            scorer,
        )
        self.fetcher = Fetcher(self.policy.fetch) if fetcher is None and self.policy.fetch is not None else fetcher
        self._given_profile = Profile.load(profile) if isinstance(profile, Path | str) else profile
        self._given: dict[str, Any] = {
            "policy": self.policy,
            "encoder": encoder,
            "profile": self._given_profile,
            "limits": self.limits,
            "cache_dir": cache_dir,
            "cache": cache,
            "fetcher": fetcher,
            "scorer": scorer,
            "max_concurrent": max_concurrent,
        }
        self._profile: Profile | None = None
        self._policy_fingerprint = self.policy.fingerprint
        # Sources under the same rule share outcomes: today's image of a user is history in the next turn.
        self._rules = {
            source: self.policy.sources.get(source, SourceRule()).model_dump_json(exclude_none=True)
            for source in SOURCES
        }
        # Decides which frames of an animation are looked at where not all are.
        self._secret = os.environ.get("GUARDALIGN_SECRET", "").encode() or secrets.token_bytes(32)
        self._identity = ""
        self._sight: Sight | None = None
        self._preparing = threading.Lock()
        rules = self.policy.failure
        self._admission = AdmissionQueue(
            max_concurrent, max_waiting=rules.max_waiting, max_wait_s=rules.max_wait_s, timeout_s=rules.timeout_s
        )
        self._under_way: UnderWay[Key, Outcome | Failure] = UnderWay()
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        # It may be used from anywhere at once, and a copy would load the encoder's weights again.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        for name, value in self._given.items():
            check_pickles(name, value)
        return _remade, (type(self), self._given)

    @property
    def profile(self) -> Profile | None:
        """The reference profile in use; None if the policy's thresholds need none and none fits."""
        self.prepare()
        return self._profile

    @property
    def reporter(self) -> Reporter:
        """Writes this guard's results; for integrations that find media which cannot be opened."""
        name = self._profile.name if self._profile else None
        return Reporter(self.policy, self._policy_fingerprint, self.detector.encoder.name, name)

    def close(self) -> None:
        """End the guard's threads; work that took too long ends in the background. A closed guard checks no more."""
        self._is_closed = True
        self._admission.close()

    def prepare(self) -> None:
        """Load encoder, anchors and profile now instead of at the first check.

        Raises:
            EncoderUnavailable: The encoder's packages or weights are missing.
            ProfileMissing: No reference profile fits and the policy needs one.
            ProfileError: The profile cannot be used.
            ForkedProcessError: PyTorch has worked in the parent of this process.
            GuardAlignError: The guard is closed.
        """
        if self._is_closed:
            raise GuardAlignError("The guard is closed; make another one.")
        mark_use()
        if self._identity:
            return
        with self._preparing:
            if self._identity:
                return
            key = self.detector.profile_key
            self._profile = fitting_profile(self.policy, key, self._given_profile, self.detector.encoder.name)
            _ = self.detector.bank
            self._sight = Sight(self.detector.reach, self.policy.max_tiles, load_consumers(self.policy.consumers))
            benign = self._profile and (self._profile.scores, self._profile.tiled)
            parts = (self._policy_fingerprint, key.digest, str(benign))
            self._identity = hashlib.sha256("|".join(parts).encode()).hexdigest()

    def redact(self, image: ImageSource, *, source: Source = "user") -> ImageOutput:
        """The image to pass on: itself, or masked.

        Args:
            image: See `check`.
            source: Where the image came from.

        Returns:
            See `CheckResult.output`.

        Raises:
            UnsafeContentError: Nothing may pass.
            EncoderUnavailable: The encoder's packages or weights are missing.
            ProfileMissing: No reference profile fits and the policy needs one.
        """
        return self.check(image, source=source).output

    async def aredact(self, image: ImageSource, *, source: Source = "user") -> ImageOutput:
        """`redact` without blocking the event loop."""
        return (await self.acheck(image, source=source)).output

    def check(self, image: ImageSource, *, source: Source = "user") -> CheckResult:
        """Check one image.

        Args:
            image: Bytes, `pathlib.Path`, PIL image or numpy array; a string is refused, it is never taken for a path.
            source: Where the image came from.

        Returns:
            The verdict and the image to pass on. An image that cannot be opened is a verdict too.

        Raises:
            EncoderUnavailable: The encoder's packages or weights are missing.
            ProfileMissing: No reference profile fits and the policy needs one.
        """
        return self.check_batch([image], source=source)[0]

    async def acheck(self, image: ImageSource, *, source: Source = "user") -> CheckResult:
        """`check` without blocking the event loop."""
        return (await self.acheck_batch([image], source=source))[0]

    async def acheck_batch(
        self, images: Sequence[ImageSource], *, source: Source | Sequence[Source] = "user"
    ) -> list[CheckResult]:
        """`check_batch` without blocking the event loop."""
        return await afinish(self.checking(images, source=source))

    def check_batch(
        self,
        images: Sequence[ImageSource],
        *,
        source: Source | Sequence[Source] = "user",
        keep_pixels: bool = False,
    ) -> list[CheckResult]:
        """Check images together: those that are new go through the encoder in as few batches as memory allows.

        Args:
            images: See `check`.
            source: One source for all, or one each.
            keep_pixels: Whether results keep the decoded images for `CheckResult.pixels`, all of them at once.

        Returns:
            One result per image, in order. An image that was not checked is a verdict too: the call was not admitted
            (``overloaded``), took too long (``timeout``), or had too many images (``over_budget``).

        Raises:
            EncoderUnavailable: The encoder's packages or weights are missing.
            ProfileMissing: No reference profile fits and the policy needs one.
            ValueError: There are not as many sources as images.
        """
        return finish(self.checking(images, source=source, keep_pixels=keep_pixels))

    def checking(
        self,
        images: Sequence[ImageSource],
        *,
        source: Source | Sequence[Source] = "user",
        keep_pixels: bool = False,
    ) -> Steps[list[CheckResult]]:
        """The steps of `check_batch`, for code that is made of steps itself (see `guarding.steps`)."""
        sources: list[Source] = [source] * len(images) if isinstance(source, str) else list(source)
        if len(sources) != len(images):
            raise ValueError(f"{len(images)} images need as many sources, not {len(sources)}")
        if not images:
            return []
        self.prepare()
        rules = self.policy.failure
        results: dict[int, CheckResult] = {}
        scored: list[ReadImage] = []
        new: list[ReadImage] = []
        for read in read_all(images, sources, self.limits, rules.uninspectable):
            if read.failure is not None:
                results[read.place] = self.reporter.failed(read.failure, read)
            elif (known := self._known(read)) is None:
                new.append(read)
            elif (recalled := None if keep_pixels else self._recall(read, *known)) is None:
                scored.append(read)
            else:
                results[read.place] = recalled
        chosen, rest = budgeted(new, rules.max_images)
        for read in rest:
            failure = Failure(read.digest, rules.uninspectable, uninspectable="over_budget")
            results[read.place] = self.reporter.failed(failure, read)
        if due := scored + chosen:
            found: dict[int, CheckResult] = {}
            why = yield from self._admission.run(
                lambda allowance: self._check_all(due, found, allowance, keep_pixels=keep_pixels)
            )
            # Work that saw by itself that its time was over has ended; other late work goes on, hence a copy.
            why, rule = ("overloaded", rules.on_overload) if why == "overloaded" else ("timeout", rules.on_timeout)
            results.update(found.copy())
            for read in due:
                if read.place not in results:
                    results[read.place] = self.reporter.failed(Failure(read.digest, rule, failure=why), read)
        return [results[place] for place in range(len(images))]

    def _known(self, read: ReadImage) -> tuple[SeenImage, Outcome] | None:
        """What is known of bytes seen before; None if they are new."""
        seen = self._seen.get((read.digest,)) if read.digest else None
        outcome = None if seen is None else self.cache.get(self._key(seen.key, read.source))
        return None if seen is None or outcome is None else (seen, outcome)

    def _recall(self, read: ReadImage, seen: SeenImage, outcome: Outcome) -> CheckResult | None:
        """The result for known bytes, without decoding them; None if other pixels go on.

        An agent sends its whole history with every call to its model, and decoding a photo can take longer than all
        else.
        """
        if self.policy.mode == "enforce" and outcome.delivers in ("masked", "canonical"):
            return None
        return self.reporter.recalled(read, seen.digest, seen.size, outcome)

    def _check_all(
        self, reads: Sequence[ReadImage], found: dict[int, CheckResult], allowance: Allowance, *, keep_pixels: bool
    ) -> None:
        """Decode images one after another and score them in chunks, until the allowance is over.

        Args:
            reads: Images to decode.
            found: Where results go, by place, chunk by chunk.
            allowance: The time of the call.
            keep_pixels: See `check_batch`.
        """
        chunk: list[tuple[ReadImage, OpenedImage | Failure]] = []
        held = 0
        for read in reads:
            if allowance.is_over:
                return
            opened = self._open(read)
            chunk.append((read, opened))
            held += 0 if isinstance(opened, Failure) else opened.plan.held_pixels
            # The next image is decoded when nothing holds this one any more.
            del opened
            if held >= _PIXELS_AT_ONCE:
                found.update(self._check_chunk(chunk, allowance, keep_pixels=keep_pixels))
                chunk, held = [], 0
        found.update(self._check_chunk(chunk, allowance, keep_pixels=keep_pixels))

    def _check_chunk(
        self, chunk: Sequence[tuple[ReadImage, OpenedImage | Failure]], allowance: Allowance, *, keep_pixels: bool
    ) -> dict[int, CheckResult]:
        """Results by place, of decoded images; without those that another call did not find in time."""
        new = {
            each.key: (each.plan, read.source)
            for read, each in chunk
            if isinstance(each, OpenedImage) and each.known is None
        }
        # An image that another call works on is waited for.
        fresh = self._under_way.run(
            list(new), lambda keys: self._assess({key: new[key] for key in keys}), allowance.until
        )
        results = {}
        for read, each in chunk:
            if isinstance(each, Failure):
                results[read.place] = self.reporter.failed(each, read)
                continue
            outcome = each.known or fresh.get(each.key)
            if outcome is not None:
                results[read.place] = self.reporter.opened(read, each, outcome, keep_pixels=keep_pixels)
        return results

    def _open(self, read: ReadImage) -> OpenedImage | Failure:
        """Decode an image and plan what goes on of it; its full-size pixels are let go unless they do."""
        started = time.perf_counter()
        try:
            image = decode(cast("ImageOutput", read.scored), self.limits, secret=self._secret)
        except ImageDecodeError as error:
            return Failure(read.digest, self.policy.failure.uninspectable, uninspectable=error.reason)
        name = image_key(image)
        if read.digest:
            self._seen.put((read.digest,), SeenImage(name, image.digest, image.size))
        key = self._key(name, read.source)
        known = self.cache.get(key)
        try:
            rule = self.policy.delivery_for(read.source)
            plan = plan_delivery(image, rule, self._prepared_sight, known.delivery if known else None)
        except Exception as error:  # noqa: BLE001  what cannot be read again as it was written does not go on
            logger.error("No delivery of image %s: %s", image.digest[:12], type(error).__name__)
            return Failure(image.digest, self.policy.failure.on_error, failure=type(error).__name__)
        took_ms = read.took_ms + (time.perf_counter() - started) * 1e3
        return OpenedImage(key, image.digest, plan, known, took_ms)

    @property
    def _prepared_sight(self) -> Sight:
        if self._sight is None:
            raise GuardAlignError("The guard is not prepared.")
        return self._sight

    def _key(self, digest: str, source: Source) -> Key:
        return digest, self._rules[source], self._identity

    def _assess(self, images: dict[Key, tuple[DeliveryPlan, Source]]) -> dict[Key, Outcome | Failure]:
        """Outcomes by key, which are kept; if the batch fails, each image is tried again alone."""
        if not images:
            return {}
        try:
            outcomes = assess(list(images.values()), self.detector, self.policy, self._profile, self._prepared_sight)
        except GuardAlignError:
            raise
        except Exception as error:  # noqa: BLE001  whatever fails in detection, the policy's failure rule decides
            if len(images) > 1:
                return {key: outcome for one in images.items() for key, outcome in self._assess(dict([one])).items()}
            (key,) = images
            logger.error("Detection failed on image %s: %s", key[0][:12], type(error).__name__)
            return {key: Failure("", self.policy.failure.on_error, failure=type(error).__name__)}
        for (key, (_, source)), outcome in zip(images.items(), outcomes, strict=True):
            # The next turn of a chat contains the masked image, which has been scored here.
            if outcome.follow_up is not None:
                self.cache.put(self._key(outcome.follow_up[0], source), outcome.follow_up[1])
            self.cache.put(key, outcome.to_keep())
        return dict(zip(images, outcomes, strict=True))


def uninspectable(guard: Guard, reason: str, source: Source = "user") -> CheckResult:
    """The result for a reference to an image whose pixels the caller cannot read.

    For integrations, not for apps: there is nothing to pass on, so its ``output`` is a plain image or an error.

    Args:
        guard: Whose policy decides.
        reason: Short code for the verdict, such as ``remote_reference``.
        source: Where it came from.

    Returns:
        What the policy's rule for uninspectable images says; for ``mask`` with a plain image.
    """
    failure = Failure("", guard.policy.failure.uninspectable, uninspectable=reason)
    return guard.reporter.failed(failure, ReadImage(0, source, None))


def _remade(kind: type[Guard], given: dict[str, Any]) -> Guard:
    return kind(**given)
