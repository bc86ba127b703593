"""A competition's calls: entering a submission."""

from __future__ import annotations

from pathlib import Path

from kagglesdk.competitions.types import competition_api_service as competitions

from kernelkit.client.answers import words
from kernelkit.client.connection import Connection


class Competition:
    """One competition, as one account sees it."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self.name = name
        self._api = connection.sdk.competitions.competition_api_client

    def submit(self, file: Path, message: str) -> tuple[int, str]:
        """Upload a submission file and enter it; the submission's number and Kaggle's words."""
        start = competitions.ApiStartSubmissionUploadRequest()
        start.competition_name, start.file_name = self.name, file.name
        start.content_length = file.stat().st_size
        start.last_modified_epoch_seconds = int(file.stat().st_mtime)
        upload = self._connection.read(
            "the upload's address", lambda: self._api.start_submission_upload(start)
        )
        with words("the upload"), file.open("rb") as stream:
            self._connection.files.put(upload.create_url, data=stream).raise_for_status()
        enter = competitions.ApiCreateSubmissionRequest()
        enter.competition_name, enter.blob_file_tokens = self.name, upload.token
        enter.submission_description = message
        answer = self._connection.once("the submission", lambda: self._api.create_submission(enter))
        return answer.ref, answer.message
