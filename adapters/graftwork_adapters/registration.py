"""From files to a registered version: stage, read, lower against the base, publish."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from graftwork_adapters.artifact import read_artifact
from graftwork_adapters.canonical import BaseDescription
from graftwork_adapters.folder import adapter_files
from graftwork_adapters.limits import AdapterLimits
from graftwork_adapters.lowering import check_base, lower
from graftwork_adapters.mutation import MutationRequest
from graftwork_adapters.paths import source_folder
from graftwork_adapters.records import VersionDraft, VersionRecord
from graftwork_adapters.registry import Registry
from graftwork_adapters.store import ImmutableStore, Staging

UPLOAD_SOURCE = "upload"


@dataclass(frozen=True, slots=True)
class Registrar:
    """Its methods take seconds and belong on the background thread."""

    registry: Registry
    store: ImmutableStore
    base: BaseDescription
    roots: Sequence[Path]
    limits: AdapterLimits

    def register_source(
        self, name: str, source: str, *, make_live: bool | None, request: MutationRequest | None
    ) -> VersionRecord:
        """From a PEFT folder under the roots. Raises AdapterError, InvalidFieldError."""
        if (known := self.registry.recall_version(request)) is not None:
            return known
        files = adapter_files(source_folder(source, self.roots), self.roots)
        with self.store.stage() as staging:
            staging.copy(files)
            draft = self._check(staging, staging.finish(), source)
            return self.registry.register(
                name, draft, publish=staging.commit, make_live=make_live, request=request
            )

    def register_upload(
        self, name: str, staging: Staging, *, make_live: bool | None, request_id: str
    ) -> VersionRecord:
        """From files that the caller has sent; an equal upload with the same request_id gets the
        same version. Raises AdapterError."""
        digest = staging.finish()
        asked = ("UploadAdapterVersion", name, str(make_live), digest)
        request = MutationRequest.of(request_id, *(part.encode() for part in asked))
        if (known := self.registry.recall_version(request)) is not None:
            return known
        draft = self._check(staging, digest, UPLOAD_SOURCE)
        return self.registry.register(
            name, draft, publish=staging.commit, make_live=make_live, request=request
        )

    def _check(self, staging: Staging, digest: str, source: str) -> VersionDraft:
        """Lowers the files once, so that whatever is wrong with them shows before they are kept."""
        artifact = read_artifact(staging.folder, self.limits)
        verified = check_base(
            artifact, self.base, require_verified=self.limits.require_verified_base
        )
        lowered = lower(artifact, self.base, max_rank=self.limits.max_rank)
        return VersionDraft(
            digest=digest,
            method=artifact.method,
            rank=lowered.rank,
            num_virtual_tokens=lowered.num_virtual_tokens,
            num_parameters=lowered.num_parameters,
            size_bytes=artifact.size_bytes,
            base_digest=self.base.digest,
            base_verified=verified,
            source=source,
        )
