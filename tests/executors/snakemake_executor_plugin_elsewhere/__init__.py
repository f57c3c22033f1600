"""An executor whose jobs share no file with Snakemake: each runs in an empty folder of its own, as in a pod.

The folder that $ELSEWHERE names holds one a job afterwards, with what the job left there.
"""

import os
import subprocess
from pathlib import Path

from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.settings import CommonSettings

# As the executor for Kubernetes has it; but the storage plugin is installed already.
common_settings = CommonSettings(
    non_local_exec=True,
    implies_no_shared_fs=True,
    job_deploy_sources=True,
    pass_default_storage_provider_args=True,
    pass_default_resources_args=True,
    pass_envvar_declarations_to_cmd=False,
    auto_deploy_default_storage_provider=False,
    init_seconds_before_status_checks=0,
)


class Executor(RemoteExecutor):
    """Runs jobs as processes."""

    def __post_init__(self):
        self.processes = {}

    def run_job(self, job):
        folder = Path(os.environ["ELSEWHERE"], f"{job.name}-{job.jobid}")
        folder.mkdir(parents=True)
        with open(folder.with_suffix(".log"), "w") as log:
            command = ["/bin/sh", "-c", self.format_job_exec(job)]
            environment = os.environ | self.envvars()
            environment.pop("SNAKEMAKE_PID", None)  # a pod has no parent
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        job_info = SubmittedJobInfo(job=job, external_jobid=folder.name)
        self.processes[folder.name] = process
        self.report_job_submission(job_info)

    async def check_active_jobs(self, active_jobs):
        for job_info in active_jobs:
            status = self.processes[job_info.external_jobid].poll()
            if status is None:
                yield job_info
            elif status == 0:
                self.report_job_success(job_info)
            else:
                log = Path(os.environ["ELSEWHERE"], f"{job_info.external_jobid}.log").read_text()
                self.report_job_error(job_info, msg=log)

    def cancel_jobs(self, active_jobs):
        for job_info in active_jobs:
            self.processes[job_info.external_jobid].terminate()
