"""Open a connection to Kaggle, or to a local Kaggle."""

from __future__ import annotations

import os
from collections.abc import Mapping

from kernelkit.kaggle.credentials import find_credentials
from kernelkit.kaggle.kernels import Kaggle


def connect(
    endpoint: str | None,
    environment: Mapping[str, str] = os.environ,
    local_user: str | None = None,
) -> Kaggle:
    """Open a connection with the credentials that the official client would use.

    If Kaggle stops accepting them, they are looked up once more: a token may have been renewed.

    Raises:
        CredentialsError: there are none, or Kaggle does not know them.
        UnreachableError: Kaggle did not say whose token it is.
    """
    credentials = find_credentials(endpoint, environment, local_user)
    return Kaggle(
        credentials,
        endpoint,
        lambda: find_credentials(endpoint, environment, local_user, renew=True),
    )
