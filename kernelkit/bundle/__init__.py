"""A package on disk becomes a `Bundle`: its files, sorted by imports, and a digest.

bundle   `read_bundle`, `Bundle`, `SourceFile`, `RUNTIME_MODULE`, `digest_of`, `digest_part`
files    which files are carried: patterns, .gitignore, tests, data; `TEST`,
         `PackageFiles`, `Arrangement`, `WHOLE_PROJECT`, `is_key_name`
extensions  compiled extensions, and whether Kaggle's image can load them: `COMPILED_SUFFIXES`
git      the commit, what differs from it and what git ignores: `Provenance`, `changes`,
         `listed_files`
checks   the entry and the imports: is everything there that the program needs?
imports  the import graph: order, what the entry reaches, names from elsewhere; `Signature`,
         `REMOVED`
metadata  name, version and entry points of the project's distribution: `Distribution`
requires  the requirements and other headers of that metadata
syntax   parses source for the Python of Kaggle's image: `parse`, `Parsed`, `called_name`
scripts  which options a script takes: `read_command_line`, `executed_files`,
         `function_arguments`,
         `CommandLine`, `Option`, `OptionForm`, `OptionValue`
image    compares imports with Kaggle's image: `compare`, `load_snapshot`, `read_snapshot`,
         `has_distribution`, `applies`, `marker_environment`, `snapshot`, `Snapshot`,
         `Availability`, `Presence`
requirements  where a run gets each requirement from: `plan_installation`, `InstallPlan`,
         `PlannedRequirement`, `InstallOrigin`, `WheelLock`, `LockedWheel`, `LOCK_NAME`,
         `MAKE_WHEELS`, `needed_by`
secrets  finds credentials in texts: `scan`, `NamedText`, `SecretFinding`, `Credential`,
         `own_credentials`, `machine_credentials`, `declare_credential`, `machine_secrets`,
         `searchable_text`, `search_bytes`, `is_text`, `PRIVATE_KEY`,
         `PRIVATE_KEY_KIND`
secret_rules  what a credential looks like

Other packages import these names from the modules. This file imports nothing, so that a command
loads only what it uses.
"""
