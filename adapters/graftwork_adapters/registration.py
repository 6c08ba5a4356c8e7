"""From files to a registered version: stage, read, lower against the base, publish."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from graftwork_adapters.adapterhub import import_folder, is_adapterhub
from graftwork_adapters.artifact import read_artifact
from graftwork_adapters.canonical import BaseDescription
from graftwork_adapters.folder import CONFIG_FILE, adapter_files
from graftwork_adapters.limits import AdapterLimits
from graftwork_adapters.lowering import check_base, lower
from graftwork_adapters.mutation import MutationRequest
from graftwork_adapters.paths import source_folder
from graftwork_adapters.peft_config import TASK_ID_FIELD
from graftwork_adapters.records import VersionDraft, VersionRecord
from graftwork_adapters.registry import Registry
from graftwork_adapters.store import ImmutableStore, Staging
from graftwork_adapters.strict_json import parse_object

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
        self,
        name: str,
        source: str,
        *,
        make_live: bool | None,
        request: MutationRequest | None,
        task_id: int | None = None,
    ) -> VersionRecord:
        """From a folder under the roots, PEFT's or AdapterHub's.

        Raises AdapterError, InvalidFieldError.
        """
        if (known := self.registry.recall_version(request)) is not None:
            return known
        folder = source_folder(source, self.roots)
        with self.store.stage() as staging:
            if is_adapterhub(folder):
                for filename, data in import_folder(folder, self.roots, self.limits).items():
                    staging.write(filename, data)
            else:
                staging.copy(adapter_files(folder, self.roots))
            _choose_task(staging, task_id)
            draft = self._check(staging, staging.finish(), source)
            return self.registry.register(
                name, draft, publish=staging.commit, make_live=make_live, request=request
            )

    def register_upload(
        self,
        name: str,
        staging: Staging,
        *,
        make_live: bool | None,
        request_id: str,
        task_id: int | None = None,
    ) -> VersionRecord:
        """From files that the caller has sent; an equal upload with the same request_id gets the
        same version. Raises AdapterError."""
        _choose_task(staging, task_id)
        digest = staging.finish()
        asked = ("UploadAdapterVersion", name, str(make_live), digest)
        request = MutationRequest.of(request_id, *(part.encode() for part in asked))
        if (known := self.registry.recall_version(request)) is not None:
            return known
        draft = self._check(staging, digest, UPLOAD_SOURCE)
        return self.registry.register(
            name, draft, publish=staging.commit, make_live=make_live, request=request
        )

    def register_ephemeral(
        self, name: str, staging: Staging, owner: str, *, task_id: int | None = None
    ) -> VersionRecord:
        """From files that the caller has sent into an ephemeral staging; an equal upload of the
        same owner gets the same version. Raises AdapterError."""
        _choose_task(staging, task_id)
        draft = self._check(staging, staging.finish(), UPLOAD_SOURCE)
        return self.registry.register_ephemeral(name, draft, owner, publish=staging.commit)

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
            labels=lowered.labels,
        )


def _choose_task(staging: Staging, task_id: int | None) -> None:
    """Writes the task into the staged config, so that versions of one file differ by their tasks
    and each is complete in itself. Raises InvalidArtifact."""
    path = staging.folder / CONFIG_FILE
    if task_id is None or not path.exists():  # what is missing, `finish` reports
        return
    staging.flush()
    fields = parse_object(path.read_bytes(), source=CONFIG_FILE)
    text = json.dumps({**fields, TASK_ID_FIELD: task_id}, indent=2, sort_keys=True)
    staging.replace(CONFIG_FILE, text.encode())
