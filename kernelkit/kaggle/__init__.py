"""The only door to Kaggle: typed calls of the official SDK, with timeouts and retries.

Public names, by module (import them from there; this file imports nothing, because the SDK takes
0.3 s to import and is needed only once a connection is made):

    connect       connect
    types         Credentials, KernelInfo, LogEntry, OutputFile, PushResponse, Quota, Scoring,
                  State, Status, Submission, Terms, Timeouts, PRODUCTION
    logs          parse_log
    credentials   LOCAL_CREDENTIALS, find_credentials, key_files
    connection    Connection
    kernels       Kaggle: the calls about kernels, datasets, models and the quota
    competitions  Competition: terms, sample, submissions and scores
    files         Stopped, Transfer, WrongContentError, download

`answers` turns every failure of a call into a kernelkit error, and decides what is retried. Nothing
here prints.
"""
