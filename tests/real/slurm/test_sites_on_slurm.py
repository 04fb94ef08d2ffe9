"""What sites do to a real Slurm: banners, clusters by name, variables of the shell, and numbers of other jobs."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from cluster import Cluster, ClusterConfig, cluster, missing
from command import complaint
from paths import FAKES
from waiting import until

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.process import Completed

FARM = """\
[job]
account = "m1234"
partition = "gpu"
time = "00:10:00"
memory = "200M"
[server]
triton = "{home}/triton"
model_repository = "{home}/models"
device = "cpu"
drain = 1
exit_timeout = 2
"""
#: A wrapper as a site has it: its words around those of the real program, with colours and carriage returns.
WRAPPER = """\
#!/bin/bash
printf '\\033[1;32m----- Welcome to {{the machine}} -----\\033[0m\\r\\n'
echo "--> Checking available allocation (m1234)...OK"
/usr/bin/{name} "$@"
status=$?
printf 'Goodbye 12\\r\\n'
exit $status
"""
PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol", "sacct")


@dataclass(frozen=True)
class Site:
    """The cluster with a user's home on it."""

    cluster: Cluster

    @property
    def home(self) -> Path:
        return self.cluster.home()

    def do(self, *words: object, env: Mapping[str, str] | None = None, user: str = "physicist") -> Completed:
        return self.cluster.run([str(word) for word in words], cwd=self.home, env=env, timeout=120, user=user)

    def good(self, *words: object, env: Mapping[str, str] | None = None) -> str:
        done = self.do(*words, env=env)
        assert done.returncode == 0, f"{words}: {done.stdout} {done.stderr}"
        return done.stdout.strip()

    def script(self, text: str, env: Mapping[str, str] | None = None) -> Completed:
        return self.do("bash", "-c", text, env=env)

    def status(self, job: str, env: Mapping[str, str] | None = None) -> dict:
        return json.loads(self.good("exatrkx-hpc", "status", job, "--json", env=env))[0]

    def queue(self, job: str = "") -> str:
        return self.good("squeue", "--noheader", "--format=%i %P %l %T %j", *([f"--jobs={job}"] if job else []))

    def serves(self, job: str, env: Mapping[str, str] | None = None) -> None:
        until(lambda: self.status(job, env)["ready"] == 1, what="a ready server", deadline=60)

    def empty(self) -> None:
        until(lambda: not self.queue(), what=f"an empty queue: {self.queue()}")


@pytest.fixture(scope="module")
def whole_site() -> Iterator[Site]:
    if reason := missing():
        pytest.skip(reason)
    with cluster(ClusterConfig(nodes=2)) as c:
        c.wait_idle()
        made = Site(c)
        (made.home / "farm.toml").write_text(FARM.format(home=made.home))
        shutil.copytree(asset("model_repos/exatrkx/frnn"), made.home / "models" / "frnn")
        shutil.copy(FAKES / "fake_tritonserver", made.home / "triton")
        (made.home / "triton").chmod(0o755)
        (made.home / "wrappers").mkdir()
        for name in PROGRAMS:
            (made.home / "wrappers" / name).write_text(WRAPPER.format(name=name))
            (made.home / "wrappers" / name).chmod(0o755)
        for path in made.home.rglob("*"):
            shutil.chown(path, c.config.user("physicist").uid)
        yield made


@pytest.fixture
def site(whole_site: Site) -> Iterator[Site]:
    """The site, whose queue is empty before and after."""
    yield whole_site
    whole_site.good("scancel", "--user=physicist")
    whole_site.cluster.run(["scancel", "--user=colleague"], user="colleague")
    whole_site.empty()


def refused(done: Completed) -> str:
    """Return the line that says why `stop` did nothing, after the one that says what it is about to do."""
    assert done.returncode == 4 and len(done.stderr.splitlines()) == 2, done.stderr
    return done.stderr.splitlines()[1]


def path(site: Site, folder: str = "wrappers") -> dict[str, str]:
    return {"PATH": f"{site.home / folder}:{site.script('echo $PATH').stdout.strip()}"}


def test_a_banner_of_each_command_changes_nothing(site: Site):
    env = path(site)
    assert "Welcome" in site.good("squeue", env=env)
    job = site.good("exatrkx-hpc", "deploy", env=env)
    assert job.isdigit()
    site.serves(job, env)
    assert site.status(job, env)["state"] == "RUNNING"
    assert site.good("exatrkx-hpc", "stop", job, env=env) == f"job {job}: COMPLETED"
    checks = json.loads(site.do("exatrkx-hpc", "doctor", "--json", env=env).stdout)
    found = {one["what"]: one for one in checks}
    assert found["job"]["found"].startswith("Job ") and found["slurm"]["found"].startswith(
        "cluster rehearsal, Slurm 22"
    )
    said = complaint(site.do("exatrkx-hpc", "deploy", "--qos", "nonsense", env=env), 4)
    assert "(exit 1): Invalid qos specification; check job.qos" in said
    site.empty()
    accounted = site.status(job, env)
    assert accounted["state"] == "COMPLETED"


def test_where_sbatch_does_not_tell_the_id_the_job_is_found_by_its_comment(site: Site):
    (site.home / "mute").mkdir(exist_ok=True)
    (site.home / "mute" / "sbatch").write_text("#!/bin/bash\n/usr/bin/sbatch \"$@\" >/dev/null && echo 'job taken'\n")
    (site.home / "mute" / "sbatch").chmod(0o755)
    job = site.good("exatrkx-hpc", "deploy", env=path(site, "mute"))
    assert site.good("squeue", "--me", "--name=exatrkx", "--noheader", "--format=%i").split() == [job]
    site.serves(job)
    assert site.good("exatrkx-hpc", "stop", job) == f"job {job}: COMPLETED"
    # A job that has left the queue is found in the accounting, by the command line of its sbatch.
    (since,) = site.good("sacct", "-X", "-n", "-P", f"--jobs={job}", "--format=SubmitLine").split("--comment=")[1:]
    assert since.startswith("exatrkx-hpc:")


def test_a_deploy_that_is_killed_before_it_knows_its_job(site: Site):
    """sbatch goes on alone; the next command takes the job over, and a next deploy submits no second one."""
    (site.home / "slow").mkdir(exist_ok=True)
    slow = site.home / "slow" / "sbatch"
    slow.write_text('#!/bin/bash\n/usr/bin/sbatch "$@" >$HOME/answer; exec sleep 60\n')
    slow.chmod(0o755)
    deploy = site.cluster.head.spawn(
        ["exatrkx-hpc", "deploy"], log=site.home / "killed.log", cwd=site.home, env=path(site, "slow")
    )
    answer = site.home / "answer"
    until(lambda: answer.exists() and answer.read_text().strip().isdigit(), what="a job", deadline=60)
    job = answer.read_text().strip()
    deploy.stop(grace=10, first=signal.SIGKILL)
    told = site.do("exatrkx-hpc", "deploy")
    said = told.stderr
    assert told.returncode == 4 and f"did not finish, but submitted job {job}; use that job" in said, said
    assert f"job {job} comes from the deploy of" in said
    site.serves(job)
    assert site.good("exatrkx-hpc", "stop", job) == f"job {job}: COMPLETED"
    assert not (site.home / "exatrkx-hpc" / "submissions").exists()


def test_a_cluster_by_name_is_kept(site: Site):
    """slurmdbd knows the cluster under its name, so that it may be asked as another one."""
    shell = {"SLURM_CLUSTERS": "rehearsal"}
    told = json.loads(site.good("exatrkx-hpc", "deploy", "--json", env=shell))
    job = told["job"]
    assert told["cluster"] == "rehearsal"
    site.serves(job)
    now = site.status(job, {"SLURM_CLUSTERS": "elsewhere"})
    assert (now["cluster"], now["state"]) == ("rehearsal", "RUNNING")
    assert f"{job};rehearsal" in site.good("exatrkx-hpc", "status")
    assert "does not belong to cluster alpha" in complaint(site.do("exatrkx-hpc", "stop", f"{job};alpha"), 4)
    done = site.do("exatrkx-hpc", "stop", f"{job};rehearsal", env={"SLURM_CLUSTERS": "elsewhere"})
    assert done.stdout == f"job {job}: COMPLETED\n", done.stderr


def test_a_cluster_that_cannot_be_asked_is_not_taken_for_this_one(site: Site):
    """The number of a job elsewhere is the number of somebody's training here."""
    theirs = site.good("sbatch", "--parsable", "--job-name=exatrkx", "--wrap=sleep 600")
    run_dir = site.home / "exatrkx-hpc" / theirs
    site.good("mkdir", "-p", run_dir)
    (run_dir / "slurm-job.json").write_text('{"cluster": "alpha", "name": "exatrkx", "script": ""}')
    assert "No cluster 'alpha' known by database" in complaint(site.do("exatrkx-hpc", "status", theirs), 4)
    assert "No cluster 'alpha' known by database" in complaint(site.do("exatrkx-hpc", "stop", theirs), 4)
    assert site.queue(theirs)


@pytest.mark.parametrize("name", ["training", "exatrkx"])
def test_a_job_that_has_the_number_by_now_is_not_cancelled(site: Site, name: str):
    theirs = site.good("sbatch", "--parsable", f"--job-name={name}", "--comment=my farm", "--wrap=sleep 600")
    run_dir = site.home / "exatrkx-hpc" / theirs
    site.good("mkdir", "-p", run_dir)
    (run_dir / "slurm-job.json").write_text('{"cluster": "", "name": "exatrkx", "script": ""}')
    until(lambda: "RUNNING" in site.queue(theirs), what="a job that runs")
    said = refused(site.do("exatrkx-hpc", "stop", theirs))
    assert f"job {theirs} is not cancelled, because it is another job of yours, '{name}'" in said
    assert "RUNNING" in site.queue(theirs)
    if name == "training":
        now = site.status(theirs)
        assert now["state"] == "UNKNOWN" and "the job ID now belongs to another job" in now["reason"]


def test_a_job_of_another_user_is_not_cancelled(site: Site):
    theirs = site.cluster.run(["sbatch", "--parsable", "--wrap=sleep 600"], user="colleague").stdout.strip()
    site.good("mkdir", "-p", f"exatrkx-hpc/{theirs}")
    said = refused(site.do("exatrkx-hpc", "stop", theirs))
    assert f"job {theirs} is not cancelled, because it is 'wrap' of user colleague" in said
    assert site.queue(theirs)


def test_variables_of_the_shell_do_not_overrule_the_farm(site: Site):
    shell = {
        "SBATCH_PARTITION": "short", "SBATCH_TIMELIMIT": "5", "SBATCH_ARRAY_INX": "0-1", "SBATCH_OUTPUT": "/dev/null",
        "SBATCH_JOB_NAME": "other", "SBATCH_QOS": "debug", "SBATCH_EXPORT": "NONE", "SBATCH_WAIT": "1",
        "SBATCH_MEM_PER_NODE": "7", "SLURM_NTASKS": "7", "SLURM_CPUS_PER_TASK": "64", "SLURM_MEM_PER_CPU": "9000",
        "SLURM_EXACT": "1", "SLURM_CPU_BIND": "mask_cpu:0x1", "SLURM_NTASKS_PER_NODE": "5", "SLURM_TIMELIMIT": "1",
        "SLURM_KILL_BAD_EXIT": "1", "SRUN_CPUS_PER_TASK": "63", "SLURM_TIME_FORMAT": "relative",
        "SLURM_JOB_ID": "999999", "SLURM_JOB_NUM_NODES": "9", "SLURM_EXPORT_ENV": "NONE",
        "SLURM_DISTRIBUTION": "plane=9", "SLURM_HINT": "nomultithread",
        "SQUEUE_FORMAT": "%i", "SQUEUE_STATES": "PENDING", "SQUEUE_NAMES": "nothing", "SQUEUE_USERS": "colleague",
        "SCANCEL_INTERACTIVE": "1", "SCANCEL_NAME": "nothing", "SACCT_FORMAT": "JobID", "SINFO_FORMAT": "%P",
    }  # fmt: skip
    done = site.do("exatrkx-hpc", "deploy", env=shell)
    assert done.returncode == 0, done.stderr
    job = done.stdout.strip()
    told = done.stderr.splitlines()[0]
    assert "SBATCH_ARRAY_INX, SBATCH_EXPORT, " in told and "are not used; set " in told
    assert site.queue() in (f"{job} gpu 10:00 {state} exatrkx" for state in ("PENDING", "CONFIGURING", "RUNNING"))
    site.serves(job, shell)
    assert (site.home / "exatrkx-hpc" / f"job-{job}.log").exists()
    assert "MinMemoryNode=200M" in site.good("scontrol", "show", "job", job)
    assert site.good("exatrkx-hpc", "stop", job, env=shell) == f"job {job}: COMPLETED"
    dry = site.good("exatrkx-hpc", "deploy", "--dry-run", env=shell)
    assert dry == site.good("exatrkx-hpc", "deploy", "--dry-run")


def test_a_farm_may_be_deployed_inside_another_allocation(site: Site):
    """The allocation's own size is not the farm's, neither for sbatch nor for the srun in its script."""
    inside = "salloc --quiet --account=m1234 --ntasks=3 --mem=50 --cpus-per-task=2 --time=5 exatrkx-hpc deploy"
    done = site.script(inside)
    assert done.returncode == 0, done.stderr
    job = done.stdout.strip()
    site.serves(job)
    assert len(site.status(job)["servers"]) == 1
    assert "MinMemoryNode=200M" in site.good("scontrol", "show", "job", job)
    assert site.good("exatrkx-hpc", "stop", job) == f"job {job}: COMPLETED"


def test_in_the_allocation_of_a_shell_its_variables_do_not_overrule_the_step(site: Site):
    """`deploy --interactive` runs srun itself."""
    text = (
        "export SLURM_CPU_BIND=mask_cpu:0x0 SLURM_NTASKS=7 SLURM_LABELIO=1 SLURM_IMMEDIATE=1 SLURM_EXPORT_ENV=NONE "
        "SLURM_KILL_BAD_EXIT=1 SLURM_DISTRIBUTION=plane=9 SRUN_CPUS_PER_TASK=63 EXATRKX_HPC_MONITOR_PROMETHEUS=false "
        "EXATRKX_HPC_BALANCER_GRPC_PORT=0 EXATRKX_HPC_BALANCER_HTTP_PORT=0 EXATRKX_HPC_BALANCER_HOST=127.0.0.1; "
        "timeout --signal=INT --kill-after=60 25 exatrkx-hpc deploy --interactive -N 1"
    )
    done = site.do("salloc", "--quiet", "--account=m1234", "--nodes=2", "--time=5", "--no-kill", "bash", "-c", text)
    assert "SRUN_CPUS_PER_TASK of this shell is not used" in done.stdout
    assert "1 of 1 servers ready" in done.stdout, f"{done.stdout} {done.stderr}"


def test_status_and_clean_of_fifty_ended_jobs_ask_once(site: Site):
    """Each of Slurm's commands is counted by a wrapper."""
    folder = site.home / "counting"
    folder.mkdir(exist_ok=True)
    for name in PROGRAMS:
        (folder / name).write_text(f'#!/bin/bash\necho "{name} $*" >>$HOME/calls\nexec /usr/bin/{name} "$@"\n')
        (folder / name).chmod(0o755)
    make = (
        "root=$HOME/fifty; mkdir -p $root; for i in $(seq 50); do job=$(sbatch --parsable -A m1234 -o /dev/null "
        '--wrap=true); mkdir $root/$job; echo \'{"cluster": ""}\' >$root/$job/slurm-job.json; '
        "touch $root/$job/plan.json $root/$job/slurm-job.json -d 2020-01-01; touch $root/$job -d 2020-01-01; done"
    )
    done = site.script(make)
    assert done.returncode == 0, done.stderr
    site.empty()
    env = path(site, "counting")
    told = json.loads(site.good("exatrkx-hpc", "status", "--json", "--run-root", site.home / "fifty", env=env))
    assert len(told) == 50 and {one["state"] for one in told} == {"COMPLETED"}
    removed = site.good("exatrkx-hpc", "clean", "--run-root", site.home / "fifty", env=env)
    assert removed.startswith("50 run directories removed")
    calls = [line.split()[0] for line in (site.home / "calls").read_text().splitlines() if "--version" not in line]
    # Slurm 22.05 answers --json with the jobs of all users, and is asked for lines from then on.
    assert calls.count("squeue") <= 4 and calls.count("sacct") <= 2 and "scontrol" not in calls, calls


def test_a_run_directory_that_takes_no_request_drains_by_a_signal_of_srun(site: Site):
    job = site.good("exatrkx-hpc", "deploy")
    site.serves(job)
    run_dir = site.home / "exatrkx-hpc" / job
    site.good("rm", "-r", run_dir / "requests")
    site.good("mkdir", "-p", run_dir / "stop" / "x")
    assert site.good("exatrkx-hpc", "stop", job) == f"job {job}: COMPLETED"
    (record,) = [json.loads(path.read_text()) for path in (run_dir / "records").glob("*.json")]
    assert (record["state"], record["note"]) == ("gone", "drained")
