"""Images in, verdicts and sanitised images out: the one entry point that every integration calls.

Order of work: decode, look up, assess all that is new in one batch, report. Configuration faults
(no encoder, no profile) are raised; what goes wrong with a single image becomes that image's verdict, by the policy's
failure rules. Content never appears in a log record or an exception.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, replace
from pathlib import Path

import platformdirs
from PIL import Image

from guardalign_guardrails.actions import SOURCES, Source
from guardalign_guardrails.detection.detector import Detector
from guardalign_guardrails.detection.encoders import Encoder, load_encoder
from guardalign_guardrails.detection.reference import Profile, ProfileKey, find_profile
from guardalign_guardrails.errors import GuardAlignError, ImageDecodeError, ProfileMissing
from guardalign_guardrails.fetch import Fetcher
from guardalign_guardrails.guarding.assess import assess, draw_mask
from guardalign_guardrails.guarding.cache import VerdictCache
from guardalign_guardrails.guarding.outcome import Failure, Outcome, failed_verdict, scored_verdict
from guardalign_guardrails.images import (
    DecodedImage,
    ImageLimits,
    ImageSource,
    decode,
)
from guardalign_guardrails.policy import Policy, SourceRule
from guardalign_guardrails.verdict import Verdict

logger = logging.getLogger(__name__)

_PLACEHOLDER_SIDE = 336
_IMAGES_AT_ONCE = 16


@dataclass(frozen=True)
class CheckResult:
    """A verdict and, if one takes the original's place, an image.

    Attributes:
        verdict: What was found and done.
        image: The image to use instead of the original, RGB, when ``verdict.action`` is ``mask``; None when the
            original may pass (``allow``, ``flag``, ``prefix``) or nothing may (``route``, ``block``).
    """

    verdict: Verdict
    image: Image.Image | None = None


class Guard:
    """Checks images against a policy.

    Nothing is loaded until the first check (or `prepare`). Safe to use from several threads and event loops at once.

    Args:
        policy: A policy, or the path of a policy file; None for the one that ships with the package.
        encoder: An encoder, or its name (see `guardalign_guardrails.detection.encoders.load_encoder`).
        profile: A calibration profile, or the path of one; None to look among the user's and the shipped ones.
        limits: What an image may cost to decode.
        cache_dir: Folder for anchor features; None for the user's cache folder.
        cache: Verdict cache, possibly shared with other guards; None for one of its own.
        fetcher: Fetches image URLs for those who find some (the guard itself fetches nothing); None for what the
            policy's ``fetch`` rules say, which is none by default.

    Raises:
        FetchUnavailable: The policy wants URLs fetched and httpcore is not installed.
    """

    def __init__(
        self,
        policy: Policy | Path | None = None,
        encoder: Encoder | str = "offline",
        *,
        profile: Profile | Path | None = None,
        limits: ImageLimits | None = None,
        cache_dir: Path | None = None,
        cache: VerdictCache[Outcome] | None = None,
        fetcher: Fetcher | None = None,
    ) -> None:
        self.policy = Policy.load(policy) if isinstance(policy, Path) else policy or Policy.default()
        self.limits = limits or ImageLimits()
        self.cache: VerdictCache[Outcome] = VerdictCache() if cache is None else cache
        # Digest and size of the image that some bytes stand for.
        self._seen: VerdictCache[tuple[str, tuple[int, int]]] = VerdictCache()
        self.detector = Detector(
            self.policy,
            load_encoder(encoder) if isinstance(encoder, str) else encoder,
            cache_dir or platformdirs.user_cache_path("guardalign"),
        )
        self.fetcher = Fetcher(self.policy.fetch) if fetcher is None and self.policy.fetch is not None else fetcher
        self._given_profile = Profile.load(profile) if isinstance(profile, Path) else profile
        self._profile: Profile | None = None
        self._policy_fingerprint = self.policy.fingerprint
        # Sources under the same rule share outcomes: today's image of a user is history in the next turn.
        self._rules = {
            source: self.policy.sources.get(source, SourceRule()).model_dump_json(exclude_none=True)
            for source in SOURCES
        }
        self._identity = ""
        self._preparing = threading.Lock()
        self._workers = ThreadPoolExecutor(thread_name_prefix="guardalign") if self.policy.failure.timeout_s else None

    @property
    def profile(self) -> Profile | None:
        """The calibration profile in use; None if the policy's thresholds need none and none fits."""
        self.prepare()
        return self._profile

    def prepare(self) -> None:
        """Load encoder, anchors and profile now instead of at the first check.

        Raises:
            EncoderUnavailable: The encoder's packages or weights are missing.
            ProfileMissing: No calibration profile fits and the policy needs one.
            ProfileError: The profile cannot be used.
        """
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

    def check(self, image: ImageSource, source: Source = "user") -> CheckResult:
        """Check one image.

        Args:
            image: Bytes, `pathlib.Path`, PIL image or numpy array; a string is refused, it is never taken for a path.
            source: Where the image came from.

        Returns:
            Verdict and, if masked, the image to use instead. An image that cannot be opened is a verdict too.

        Raises:
            EncoderUnavailable: The encoder's packages or weights are missing.
            ProfileMissing: No calibration profile fits and the policy needs one.
        """
        return self.check_batch([image], source)[0]

    async def acheck(self, image: ImageSource, source: Source = "user") -> CheckResult:
        """`check` without blocking the event loop."""
        return (await self.acheck_batch([image], source))[0]

    async def acheck_batch(
        self, images: Sequence[ImageSource], source: Source | Sequence[Source] = "user"
    ) -> list[CheckResult]:
        """`check_batch` without blocking the event loop."""
        return await asyncio.to_thread(self.check_batch, images, source)

    def check_batch(
        self, images: Sequence[ImageSource], source: Source | Sequence[Source] = "user"
    ) -> list[CheckResult]:
        """Check images together: all that are new go through the encoder in one batch (16 at once, to bound memory).

        Args:
            images: See `check`.
            source: One source for all, or one each.

        Returns:
            One result per image, in order.

        Raises:
            EncoderUnavailable: The encoder's packages or weights are missing.
            ProfileMissing: No calibration profile fits and the policy needs one.
            ValueError: There are not as many sources as images.
        """
        sources: list[Source] = [source] * len(images) if isinstance(source, str) else list(source)
        if len(sources) != len(images):
            raise ValueError(f"{len(images)} images need as many sources, not {len(sources)}")
        if not images:
            return []
        self.prepare()
        results = [self._recall(image, each) for image, each in zip(images, sources, strict=True)]
        new = [place for place, result in enumerate(results) if result is None]
        for first in range(0, len(new), _IMAGES_AT_ONCE):
            places = new[first : first + _IMAGES_AT_ONCE]
            decoded = [self._decode(images[place]) for place in places]
            for place, result in zip(places, self._check_decoded(decoded, [sources[p] for p in places]), strict=True):
                results[place] = result
        return [result for result in results if result is not None]

    def uninspectable(self, reason: str, source: Source = "user") -> CheckResult:
        """The result for something that is an image but whose pixels the caller cannot get at.

        Args:
            reason: Short code for the verdict, such as ``remote_reference``.
            source: Where it came from.

        Returns:
            What the policy's rule for uninspectable images says; for ``mask`` with a plain image.
        """
        failure = Failure("", self.policy.failure.uninspectable, uninspectable=reason)
        return self._report_failure(self._blank("", source, 0.0), failure, (_PLACEHOLDER_SIDE, _PLACEHOLDER_SIDE))

    def _recall(self, image: ImageSource, source: Source) -> CheckResult | None:
        """The result for bytes seen before, without decoding them; None if it is not known or a mask must be drawn.

        An agent sends its whole history with every call to its model, and decoding a photo can take longer than all
        else.
        """
        if not isinstance(image, bytes):
            return None
        started = time.perf_counter()
        seen = self._seen.get((hashlib.sha256(image).hexdigest(),))
        outcome = None if seen is None else self.cache.get(self._key(seen[0], source))
        if seen is None or outcome is None or outcome.proposed == "mask":
            return None
        digest, size = seen
        blank = self._blank(digest, source, (time.perf_counter() - started) * 1e3)
        return CheckResult(scored_verdict(blank, outcome, size, is_cached=True, mode=self.policy.mode))

    def _check_decoded(
        self, decoded: Sequence[tuple[DecodedImage | Failure, float]], sources: Sequence[Source]
    ) -> list[CheckResult]:
        known: dict[tuple[str, ...], Outcome | Failure] = {}
        cached: set[tuple[str, ...]] = set()
        new: dict[tuple[str, ...], tuple[DecodedImage, Source]] = {}
        keys = []
        for (image, _), source in zip(decoded, sources, strict=True):
            key = self._key(image.digest, source)
            keys.append(key)
            if isinstance(image, Failure) or key in known or key in new:
                continue
            hit = self.cache.get(key)
            if hit is None:
                new[key] = (image, source)
            else:
                known[key] = hit
                cached.add(key)
        for key, outcome in zip(new, self._outcomes(list(new.values())), strict=True):
            known[key] = outcome
            if isinstance(outcome, Outcome):
                # The next turn of a chat brings the masked image, of which all is known by now.
                if outcome.follow_up is not None:
                    self.cache.put(self._key(outcome.follow_up[0], new[key][1]), outcome.follow_up[1])
                self.cache.put(key, replace(outcome, follow_up=None))
        results = []
        for (image, took), source, key in zip(decoded, sources, keys, strict=True):
            blank = self._blank(image.digest, source, took)
            if isinstance(image, Failure):
                results.append(self._report_failure(blank, image, (_PLACEHOLDER_SIDE, _PLACEHOLDER_SIDE)))
            elif isinstance(outcome := known[key], Failure):
                results.append(self._report_failure(blank, outcome, image.size))
            else:
                results.append(self._report(blank, image, outcome, key in cached))
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
            if self.policy.needs_profile and self.policy.scoring.method != "paper":
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

    def _decode(self, image: ImageSource) -> tuple[DecodedImage | Failure, float]:
        started = time.perf_counter()
        result: DecodedImage | Failure
        try:
            result = decode(image, self.limits)
            if isinstance(image, bytes):
                self._seen.put((hashlib.sha256(image).hexdigest(),), (result.digest, result.size))
        except ImageDecodeError as error:
            result = Failure(self._raw_digest(image), self.policy.failure.uninspectable, uninspectable=error.reason)
        return result, (time.perf_counter() - started) * 1e3

    def _key(self, digest: str, source: Source) -> tuple[str, ...]:
        return digest, self._rules[source], self._identity

    def _raw_digest(self, image: ImageSource) -> str:
        """Digest of an image that cannot be decoded; empty if its bytes cannot be had or are too many."""
        if isinstance(image, Path):
            try:
                is_small = image.is_file() and image.stat().st_size <= self.limits.max_bytes
                image = image.read_bytes() if is_small else b""
            except OSError:
                image = b""
        if isinstance(image, bytes | bytearray | memoryview) and len(image) > 0:
            return hashlib.sha256(image).hexdigest()
        return ""

    def _outcomes(self, images: Sequence[tuple[DecodedImage, Source]]) -> list[Outcome | Failure]:
        """Outcomes of new images; if the batch fails, each image has another try on its own."""
        if not images:
            return []
        try:
            return list(self._within_time(images))
        except FutureTimeoutError:
            return [Failure(image.digest, self.policy.failure.on_timeout, failure="timeout") for image, _ in images]
        except GuardAlignError:
            raise
        except Exception as error:  # noqa: BLE001  whatever fails in detection, the policy's failure rule decides
            if len(images) > 1:
                return [outcome for image in images for outcome in self._outcomes([image])]
            logger.error("Detection failed on image %s: %s", images[0][0].digest[:12], type(error).__name__)
            return [Failure(images[0][0].digest, self.policy.failure.on_error, failure=type(error).__name__)]

    def _within_time(self, images: Sequence[tuple[DecodedImage, Source]]) -> list[Outcome]:
        if self._workers is None:
            return self._assess(images)
        return self._workers.submit(self._assess, images).result(self.policy.failure.timeout_s)

    def _assess(self, images: Sequence[tuple[DecodedImage, Source]]) -> list[Outcome]:
        return assess(images, self.detector, self.policy, self._profile)

    def _blank(self, digest: str, source: Source, decode_ms: float) -> Verdict:
        return Verdict(
            digest=digest,
            source=source,
            action="allow",
            proposed="allow",
            encoder=self.detector.encoder.name,
            policy=self._policy_fingerprint,
            profile=self._profile.name if self._profile else None,
            timings={"decode": decode_ms},
        )

    def _report(self, blank: Verdict, image: DecodedImage, outcome: Outcome, is_cached: bool) -> CheckResult:
        verdict = scored_verdict(blank, outcome, image.size, is_cached=is_cached, mode=self.policy.mode)
        return CheckResult(
            verdict, draw_mask(image, outcome.masks, self.policy.masking) if verdict.action == "mask" else None
        )

    def _report_failure(self, blank: Verdict, failure: Failure, size: tuple[int, int]) -> CheckResult:
        verdict = failed_verdict(blank, failure, mode=self.policy.mode)
        plain = Image.new("RGB", size, self.policy.masking.colour) if verdict.action == "mask" else None
        return CheckResult(verdict, plain)
