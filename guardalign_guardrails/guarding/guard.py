"""Images in, verdicts and images to pass on out: the one entry point that every integration calls.

Order of work: read once, look up, decode, assess all that is new in one batch, report. Configuration faults (no
encoder, no profile) are raised; what goes wrong with a single image becomes that image's verdict, by the policy's
failure rules. Content never appears in a log record or an exception.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import pickle
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import platformdirs
from PIL import Image
from typing_extensions import Self

from guardalign_guardrails.actions import SOURCES, Source
from guardalign_guardrails.detection.detector import Detector
from guardalign_guardrails.detection.encoders import Encoder, load_encoder
from guardalign_guardrails.detection.reference import Profile, ProfileKey, find_profile
from guardalign_guardrails.detection.scoring import Scorer
from guardalign_guardrails.errors import GuardAlignError, ImageDecodeError, NotPicklable, ProfileMissing
from guardalign_guardrails.fetch import Fetcher
from guardalign_guardrails.guarding.assess import assess, draw_mask
from guardalign_guardrails.guarding.cache import VerdictCache
from guardalign_guardrails.guarding.forks import mark_use
from guardalign_guardrails.guarding.outcome import Failure, Outcome, failed_verdict, scored_verdict
from guardalign_guardrails.guarding.result import CheckResult, ImageOutput
from guardalign_guardrails.guarding.workers import Workers
from guardalign_guardrails.images import DecodedImage, ImageLimits, ImageSource, decode, freeze
from guardalign_guardrails.policy import Policy, SourceRule
from guardalign_guardrails.verdict import Verdict

logger = logging.getLogger(__name__)

_PLACEHOLDER_SIZE = (336, 336)
_IMAGES_AT_ONCE = 16

_Key = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Read:
    """One image of a batch, as it was read.

    Attributes:
        place: Which of the batch.
        source: Where it came from.
        scored: What nobody else can change any more; None if nothing could be read.
        digest: SHA-256 of its bytes; empty for what is not encoded.
        failure: Why nothing could be read.
        took_ms: How long that took, in milliseconds.
    """

    place: int
    source: Source
    scored: ImageOutput | None = field(repr=False)
    digest: str = ""
    failure: Failure | None = None
    took_ms: float = 0.0


class Guard:
    """Checks images against a policy.

    Nothing is loaded until the first check (or `prepare`). Safe to use from several threads and event loops at once.
    A context manager: `close` ends its threads. It pickles, without what it has loaded and found, where what it was
    given does.

    Args:
        policy: A policy, or the path of a policy file; None for the one that ships with the package.
        encoder: An encoder, or its name (see `guardalign_guardrails.detection.encoders.load_encoder`).
        profile: A reference profile, or the path of one; None to look among the user's and the shipped ones.
        limits: What an image may cost to decode.
        cache_dir: Folder for anchor features; None for the user's cache folder.
        cache: Verdict cache, possibly shared with other guards; None for one of its own.
        fetcher: Fetches image URLs for those who find some (the guard itself fetches nothing); None for what the
            policy's ``fetch`` rules say, which is none by default.
        scorer: How to score, for comparisons; None for what the policy says.

    Raises:
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
    ) -> None:
        self.policy = Policy.load(policy) if isinstance(policy, Path | str) else policy or Policy.default()
        self.limits = limits or ImageLimits()
        self.cache: VerdictCache[Outcome] = VerdictCache() if cache is None else cache
        # Digest and size of the image that some bytes stand for.
        self._seen: VerdictCache[tuple[str, tuple[int, int]]] = VerdictCache()
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
        }
        self._profile: Profile | None = None
        self._policy_fingerprint = self.policy.fingerprint
        # Sources under the same rule share outcomes: today's image of a user is history in the next turn.
        self._rules = {
            source: self.policy.sources.get(source, SourceRule()).model_dump_json(exclude_none=True)
            for source in SOURCES
        }
        self._identity = ""
        self._preparing = threading.Lock()
        timeout_s = self.policy.failure.timeout_s
        self._workers: Workers[_Key, Outcome | Failure] | None = None if timeout_s is None else Workers(timeout_s)
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
            _check_pickles(name, value)
        return _remade, (type(self), self._given)

    @property
    def profile(self) -> Profile | None:
        """The reference profile in use; None if the policy's thresholds need none and none fits."""
        self.prepare()
        return self._profile

    def close(self) -> None:
        """End the guard's threads; work that took too long ends in the background. A closed guard checks no more."""
        self._is_closed = True
        if self._workers is not None:
            self._workers.close()

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
            self._profile = self._fitting_profile(key)
            _ = self.detector.bank
            parts = (self._policy_fingerprint, key.digest, str(self._profile and self._profile.scores))
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
        return await asyncio.to_thread(self.check_batch, images, source=source)

    def check_batch(
        self, images: Sequence[ImageSource], *, source: Source | Sequence[Source] = "user"
    ) -> list[CheckResult]:
        """Check images together: all that are new go through the encoder in one batch (16 at once, to bound memory).

        Args:
            images: See `check`.
            source: One source for all, or one each.

        Returns:
            One result per image, in order.

        Raises:
            EncoderUnavailable: The encoder's packages or weights are missing.
            ProfileMissing: No reference profile fits and the policy needs one.
            ValueError: There are not as many sources as images.
        """
        sources: list[Source] = [source] * len(images) if isinstance(source, str) else list(source)
        if len(sources) != len(images):
            raise ValueError(f"{len(images)} images need as many sources, not {len(sources)}")
        if not images:
            return []
        self.prepare()
        results: dict[int, CheckResult] = {}
        new: list[_Read] = []
        for place, (image, each) in enumerate(zip(images, sources, strict=True)):
            read = self._read(place, image, each)
            if (known := self._recall(read)) is not None:
                results[place] = known
                continue
            new.append(read)
            if len(new) == _IMAGES_AT_ONCE:
                results.update(self._check_new(new))
                new = []
        results.update(self._check_new(new))
        return [results[place] for place in range(len(images))]

    def _read(self, place: int, image: ImageSource, source: Source) -> _Read:
        started = time.perf_counter()
        try:
            scored = freeze(image, self.limits)
        except ImageDecodeError as error:
            # Bytes that are too many are passed on all the same where the policy lets pass what cannot be opened.
            data = bytes(image) if isinstance(image, bytes | bytearray | memoryview) else b""
            digest = hashlib.sha256(data).hexdigest() if data else ""
            failure = Failure(digest, self.policy.failure.uninspectable, uninspectable=error.reason)
            return _Read(place, source, data or None, failure=failure)
        digest = hashlib.sha256(scored).hexdigest() if isinstance(scored, bytes) else ""
        return _Read(place, source, scored, digest, took_ms=(time.perf_counter() - started) * 1e3)

    def _recall(self, read: _Read) -> CheckResult | None:
        """The result for bytes seen before, without decoding them; None if it is not known or a mask must be drawn.

        An agent sends its whole history with every call to its model, and decoding a photo can take longer than all
        else.
        """
        seen = self._seen.get((read.digest,)) if read.digest else None
        outcome = None if seen is None else self.cache.get(self._key(seen[0], read.source))
        if seen is None or outcome is None or outcome.proposed == "mask":
            return None
        blank = self._blank(seen[0], read.source, read.took_ms)
        return CheckResult(scored_verdict(blank, outcome, seen[1], is_cached=True, mode=self.policy.mode), read.scored)

    def _check_new(self, reads: Sequence[_Read]) -> dict[int, CheckResult]:
        """Results by place, of images that all have to be decoded."""
        decoded = [self._decode(read) for read in reads]
        keys = [self._key(image.digest, read.source) for (image, _), read in zip(decoded, reads, strict=True)]
        known: dict[_Key, Outcome | Failure] = {}
        new: dict[_Key, tuple[DecodedImage, Source]] = {}
        for (image, _), read, key in zip(decoded, reads, keys, strict=True):
            if isinstance(image, Failure) or key in known or key in new:
                continue
            if (hit := self.cache.get(key)) is None:
                new[key] = (image, read.source)
            else:
                known[key] = hit
        fresh = self._outcomes(new)
        results = {}
        for (image, took), read, key in zip(decoded, reads, keys, strict=True):
            blank = self._blank(image.digest, read.source, took)
            outcome = image if isinstance(image, Failure) else fresh.get(key) or known[key]
            size = _PLACEHOLDER_SIZE if isinstance(image, Failure) else image.size
            if isinstance(outcome, Failure):
                results[read.place] = self._report_failure(blank, outcome, size, read.scored)
            elif isinstance(image, DecodedImage):
                results[read.place] = self._report(blank, image, outcome, key in known, read.scored)
        return results

    def _fitting_profile(self, key: ProfileKey) -> Profile | None:
        if self._given_profile is not None:
            if self._given_profile.key.digest != key.digest:
                raise ProfileMissing(
                    f"The profile '{self._given_profile.name}' was made with another encoder, other anchors or another "
                    "scoring; make one that fits with 'guardalign calibrate'."
                )
            return self._warned(self._given_profile)
        try:
            return self._warned(find_profile(key, encoder_name=self.detector.encoder.name))
        except ProfileMissing:
            if self.policy.needs_profile:
                raise
            return None

    def _warned(self, profile: Profile) -> Profile:
        rate = self.policy.smallest_rate
        if rate is not None and rate < profile.resolution:
            logger.warning(
                "Profile %s holds %d images and cannot resolve a false-positive rate of %g (at least %d are needed); "
                "that threshold is never met.",
                profile.name,
                len(profile.scores),
                rate,
                int(1 / rate),
            )
        return profile

    def _decode(self, read: _Read) -> tuple[DecodedImage | Failure, float]:
        if read.failure is not None or read.scored is None:
            return read.failure or Failure("", self.policy.failure.uninspectable, uninspectable="unreadable"), 0.0
        started = time.perf_counter()
        result: DecodedImage | Failure
        try:
            result = decode(read.scored, self.limits)
        except ImageDecodeError as error:
            result = Failure(read.digest, self.policy.failure.uninspectable, uninspectable=error.reason)
        else:
            if read.digest:
                self._seen.put((read.digest,), (result.digest, result.size))
        return result, read.took_ms + (time.perf_counter() - started) * 1e3

    def _key(self, digest: str, source: Source) -> _Key:
        return digest, self._rules[source], self._identity

    def _outcomes(self, images: dict[_Key, tuple[DecodedImage, Source]]) -> dict[_Key, Outcome | Failure]:
        """Outcomes of new images by key, within the time limit if there is one."""
        if self._workers is None:
            return self._assess(images)
        ready = self._workers.run(list(images), lambda keys: self._assess({key: images[key] for key in keys}))
        rule = self.policy.failure.on_timeout
        return {
            key: ready.get(key) or Failure(image.digest, rule, failure="timeout") for key, (image, _) in images.items()
        }

    def _assess(self, images: dict[_Key, tuple[DecodedImage, Source]]) -> dict[_Key, Outcome | Failure]:
        """Outcomes by key, which are kept; if the batch fails, each image has another try on its own."""
        if not images:
            return {}
        try:
            outcomes = assess(list(images.values()), self.detector, self.policy, self._profile)
        except GuardAlignError:
            raise
        except Exception as error:  # noqa: BLE001  whatever fails in detection, the policy's failure rule decides
            if len(images) > 1:
                return {key: outcome for one in images.items() for key, outcome in self._assess(dict([one])).items()}
            ((key, (image, _)),) = images.items()
            logger.error("Detection failed on image %s: %s", image.digest[:12], type(error).__name__)
            return {key: Failure(image.digest, self.policy.failure.on_error, failure=type(error).__name__)}
        for (key, (_, source)), outcome in zip(images.items(), outcomes, strict=True):
            # The next turn of a chat brings the masked image, of which all is known by now.
            if outcome.follow_up is not None:
                self.cache.put(self._key(outcome.follow_up[0], source), outcome.follow_up[1])
            self.cache.put(key, outcome.to_keep())
        return dict(zip(images, outcomes, strict=True))

    def _blank(self, digest: str, source: Source, decode_ms: float) -> Verdict:
        return Verdict(
            digest=digest,
            source=source,
            action="allow",
            proposed="allow",
            encoder=self.detector.encoder.name,
            policy_fingerprint=self._policy_fingerprint,
            profile=self._profile.name if self._profile else None,
            timings={"decode": decode_ms},
        )

    def _report(
        self, blank: Verdict, image: DecodedImage, outcome: Outcome, is_cached: bool, scored: ImageOutput | None
    ) -> CheckResult:
        verdict = scored_verdict(blank, outcome, image.size, is_cached=is_cached, mode=self.policy.mode)
        if verdict.action != "mask":
            return CheckResult(verdict, scored)
        return CheckResult(verdict, scored, outcome.drawn or draw_mask(image, outcome.masks, self.policy.masking))

    def _report_failure(
        self, blank: Verdict, failure: Failure, size: tuple[int, int], scored: ImageOutput | None = None
    ) -> CheckResult:
        verdict = failed_verdict(blank, failure, mode=self.policy.mode)
        plain = Image.new("RGB", size, self.policy.masking.colour) if verdict.action == "mask" else None
        return CheckResult(verdict, scored, plain)


def uninspectable(guard: Guard, reason: str, source: Source = "user") -> CheckResult:
    """The result for something that stands for an image but whose pixels the caller cannot get at.

    For integrations, not for apps: there is nothing to pass on, so its ``output`` is a plain image or an error.

    Args:
        guard: Whose policy decides.
        reason: Short code for the verdict, such as ``remote_reference``.
        source: Where it came from.

    Returns:
        What the policy's rule for uninspectable images says; for ``mask`` with a plain image.
    """
    failure = Failure("", guard.policy.failure.uninspectable, uninspectable=reason)
    return guard._report_failure(guard._blank("", source, 0.0), failure, _PLACEHOLDER_SIZE)  # noqa: SLF001  this module


def _check_pickles(name: str, value: object) -> None:
    try:
        pickle.dumps(value)
    except Exception as error:  # whatever a member raises, it cannot be pickled
        raise NotPicklable(name, type(value).__name__) from error


def _remade(kind: type[Guard], given: dict[str, Any]) -> Guard:
    return kind(**given)
