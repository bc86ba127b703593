"""The life of a run: push, watch, download, verify, submit, and the record of it on disk.

push      decides whether a push is needed, and sends it exactly once
watch     follows a run to its end
download  fetches the outputs
verify    compares a folder with the manifest that its run wrote
store     the run folders
history   lists and compares runs
submit    checks a submission
unpack    unpacks verified zips
"""
