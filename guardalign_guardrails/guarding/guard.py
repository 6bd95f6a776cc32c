"""From images to verdicts and images to pass on: the one entry point that every integration calls.

Order of work: read once, look up, decode, assess all that is new in one batch, report. Configuration faults (no
encoder, no profile) are raised; what goes wrong with a single image becomes that image's verdict, by the policy's
failure rules. Content never appears in a log record or an exception.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import platformdirs
from typing_extensions import Self

from guardalign_guardrails.actions import SOURCES, Source
from guardalign_guardrails.detection.detector import Detector
from guardalign_guardrails.detection.encoders import Encoder, load_encoder
from guardalign_guardrails.detection.reference import Profile
from guardalign_guardrails.detection.scoring import Scorer
from guardalign_guardrails.errors import GuardAlignError, ImageDecodeError
from guardalign_guardrails.fetch import Fetcher
from guardalign_guardrails.guarding.assess import assess
from guardalign_guardrails.guarding.cache import VerdictCache
from guardalign_guardrails.guarding.forks import mark_use
from guardalign_guardrails.guarding.outcome import Failure, Outcome
from guardalign_guardrails.guarding.pickles import check_pickles
from guardalign_guardrails.guarding.profile import fitting_profile
from guardalign_guardrails.guarding.reading import ReadImage, read_all
from guardalign_guardrails.guarding.report import Reporter
from guardalign_guardrails.guarding.result import CheckResult, ImageOutput
from guardalign_guardrails.guarding.workers import Workers
from guardalign_guardrails.images import DecodedImage, ImageLimits, ImageSource, decode
from guardalign_guardrails.policy import Policy, SourceRule

logger = logging.getLogger(__name__)

_IMAGES_AT_ONCE = 16

_Key = tuple[str, ...]


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
            self._profile = fitting_profile(self.policy, key, self._given_profile, self.detector.encoder.name)
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
        self,
        images: Sequence[ImageSource],
        *,
        source: Source | Sequence[Source] = "user",
        keep_pixels: bool = False,
    ) -> list[CheckResult]:
        """Check images together: all that are new go through the encoder in one batch (16 at once, to bound memory).

        Args:
            images: See `check`.
            source: One source for all, or one each.
            keep_pixels: Whether results keep the decoded images for `CheckResult.pixels`, all of them at once.

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
        new: list[ReadImage] = []
        for read in read_all(images, sources, self.limits, self.policy.failure.uninspectable):
            if not keep_pixels and (known := self._recall(read)) is not None:
                results[read.place] = known
                continue
            new.append(read)
            if len(new) == _IMAGES_AT_ONCE:
                results.update(self._check_new(new, keep_pixels=keep_pixels))
                new = []
        results.update(self._check_new(new, keep_pixels=keep_pixels))
        return [results[place] for place in range(len(images))]

    def _recall(self, read: ReadImage) -> CheckResult | None:
        """The result for bytes seen before, without decoding them; None if it is not known or a mask must be drawn.

        An agent sends its whole history with every call to its model, and decoding a photo can take longer than all
        else.
        """
        seen = self._seen.get((read.digest,)) if read.digest else None
        outcome = None if seen is None else self.cache.get(self._key(seen[0], read.source))
        if seen is None or outcome is None or outcome.proposed == "mask":
            return None
        return self.reporter.recalled(read, *seen, outcome)

    def _check_new(self, reads: Sequence[ReadImage], *, keep_pixels: bool) -> dict[int, CheckResult]:
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
        for (image, took_ms), read, key in zip(decoded, reads, keys, strict=True):
            if isinstance(image, Failure):
                result = self.reporter.failed(image, read, took_ms=took_ms)
            elif isinstance(outcome := fresh.get(key) or known[key], Failure):
                result = self.reporter.failed(outcome, read, image.size, took_ms=took_ms)
            else:
                result = self.reporter.scored(read, image, outcome, took_ms=took_ms, is_cached=key in known)
            results[read.place] = (
                replace(result, _decoded=image.flattened) if keep_pixels and isinstance(image, DecodedImage) else result
            )
        return results

    def _decode(self, read: ReadImage) -> tuple[DecodedImage | Failure, float]:
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
        """Outcomes by key, which are kept; if the batch fails, each image is tried again alone."""
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
