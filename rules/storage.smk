# What differs where results are in a bucket (--default-storage-provider); no rules here, and docs/storage.md says more.

from dpo import provenance
from snakemake.io import sourcecache_entry

IN_BUCKET = workflow.storage_settings.default_storage_provider is not None
# Only the Snakemake that plans asks it; those that run its jobs elsewhere do what they are told.
BUCKET = workflow.storage_registry.default_storage_provider if workflow.is_main_process else None


def stored_provenance():
    """The bucket's provenance.json, with a copy here that is no result's."""
    prefix = workflow.storage_settings.default_storage_prefix.rstrip("/")
    stored = BUCKET.object(f"{prefix}/results/provenance.json")
    stored.set_local_path(Path(".snakemake/stored_provenance.json"))
    return stored


def look_for_folders_anew(kind):
    """Have the S3 plugin look again for a folder that was not there, each time that it is asked for.

    It remembers that a name is no folder. A job on another machine then makes one of it in vain: here it is found
    missing, and the job has failed.
    """
    exists = kind.exists

    def exists_now(self):
        self._is_dir = self._is_dir or None
        return exists(self)

    kind.exists = exists_now


if BUCKET and hasattr(stored_provenance(), "_is_dir"):
    look_for_folders_anew(type(stored_provenance()))


def made_from_here():
    """Tell whether all that is in the bucket was made from the files that lie here, with the settings of now.

    So it is where another folder, or a clone of before, ran the workflow to its end. What Snakemake remembers of that
    stayed there. Here it could compare times alone, and those of a fresh clone's files say when it was cloned.
    """
    if not BUCKET:
        return False
    stored = stored_provenance()
    if not workflow.async_run(stored.managed_exists()):
        return False
    workflow.async_run(stored.managed_retrieve())
    return provenance.made_from_here(stored.local_path(), json.loads(as_setting(config)))


MADE_FROM_HERE = made_from_here()


def withdraw_provenance():
    """Remove the bucket's provenance.json, which vouches for all results at once; the last job writes it again."""
    if BUCKET and workflow.async_run(stored_provenance().managed_exists()):
        workflow.async_run(stored_provenance().managed_remove())


def own_file(path):
    """A file of the checkout. It is no result and in no bucket: a job on another machine gets it with the code."""
    return sourcecache_entry(ancient(path) if MADE_FROM_HERE else path, path) if IN_BUCKET else path


def large_file(path):
    """A file or folder of the user that is too large to go with the code: a job that reads it runs on this machine."""
    return local(ancient(path) if MADE_FROM_HERE else path)


TEST_FILES = {name: own_file(DATA[name]) for name in TEST_SETS}


def sources_at(name, places):
    """The sources of a set, with each folder at its place, which is elsewhere where results are in a bucket."""
    return [
        source | ({"folder": place} if "folder" in source else {})
        for source, place in zip(sources_of(name), places, strict=True)
    ]


def judge_file(judge):
    """The file of a judge that is one."""
    return large_file(JUDGES[judge]["gguf"]) if "gguf" in JUDGES[judge] else []
