"""Where values come from, what is said when one is wrong, and the files of `init`."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from exatrkx_hpc.base.errors import ConfigError
from exatrkx_hpc.cli import app
from exatrkx_hpc.config.resolve import commented_file, known_keys, nearest, resolve, site_names, value_of
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.launch.plan import engine_faults

SITES = ("generic", "local", "perlmutter")


@pytest.fixture(autouse=True)
def somewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder, a home and a scratch folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch/me")


def write(text: str, name: str = "farm.toml") -> Path:
    path = Path(name)
    path.write_text(text)
    return path


def refusal(*, file: Path | None = None, flags: dict[str, object] | None = None) -> str:
    """Return the one line that a wrong value is answered with."""
    with pytest.raises(ConfigError) as caught:
        resolve(file, flags=flags)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_each_layer_goes_over_the_next_and_says_so(monkeypatch):
    write(
        """
        site = "perlmutter"
        [job]
        nodes = 2
        account = "file"
        qos = "debug"
        """
    )
    monkeypatch.setenv("EXATRKX_HPC_JOB_NODES", "3")
    monkeypatch.setenv("EXATRKX_HPC_JOB_ACCOUNT", "variable")
    done = resolve(flags={"job.nodes": 4})
    expected = {
        "job.nodes": (4, "flag"),
        "job.account": ("variable", "environment"),
        "job.qos": ("debug", "farm.toml"),
        "job.constraint": ("gpu", "profile perlmutter"),
        "job.time": ("00:30:00", "default"),
        "site": ("perlmutter", "farm.toml"),
        "run_root": ("/scratch/me/exatrkx-hpc", "profile perlmutter"),
    }
    assert {key: (value_of(done.farm, key), done.sources[key]) for key in expected} == expected


def test_without_anything_it_is_the_generic_site():
    done = resolve()
    assert done.farm.site == "generic"
    assert done.sources["site"] == "profile generic"
    assert done.farm.run_root == "/home/me/exatrkx-hpc"


def test_every_key_has_a_value_and_a_source():
    done = resolve()
    assert list(done.sources) == list(known_keys())
    for key in known_keys():
        value_of(done.farm, key)


@pytest.mark.parametrize(
    ("layer", "site"), [("flag", "local"), ("environment", "perlmutter"), ("farm.toml", "generic")]
)
def test_any_layer_may_name_the_site(monkeypatch, layer, site):
    write('site = "generic"')
    if layer != "farm.toml":
        monkeypatch.setenv("EXATRKX_HPC_SITE", "perlmutter")
    done = resolve(flags={"site": "local"} if layer == "flag" else None)
    assert (done.farm.site, done.sources["site"]) == (site, layer)


def test_a_named_file_goes_before_the_one_that_lies_here():
    write("[job]\nnodes = 2")
    other = write("[job]\nnodes = 3", "other.toml")
    done = resolve(other)
    assert (done.farm.job.nodes, done.sources["job.nodes"]) == (3, "other.toml")


def test_lists_and_tables_in_the_environment_are_json_and_texts_never_are(monkeypatch):
    monkeypatch.setenv("EXATRKX_HPC_SERVER_ENVIRONMENT", '{"A": "1"}')
    monkeypatch.setenv("EXATRKX_HPC_JOB_EXTRA_DIRECTIVES", '["--exclusive"]')
    monkeypatch.setenv("EXATRKX_HPC_JOB_CONSTRAINT", "[rack1|rack2]")
    farm = resolve().farm
    assert farm.server.environment == {"A": "1"}
    assert farm.job.extra_directives == ("--exclusive",)
    assert farm.job.constraint == "[rack1|rack2]"
    monkeypatch.setenv("EXATRKX_HPC_SERVER_MODULES", "gpu")
    assert (
        refusal() == 'environment: EXATRKX_HPC_SERVER_MODULES must be written as JSON, such as ["a"]: Expecting value'
    )


def test_every_key_has_a_variable_of_its_own():
    names = [key.upper().replace(".", "_") for key in known_keys()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[job]\ngpu_per_node = 4", "farm.toml: unknown key 'job.gpu_per_node'; did you mean 'job.gpus_per_node'?"),
        ("run_rot = '/x'", "farm.toml: unknown key 'run_rot'; did you mean 'run_root'?"),
        ("nodes = 4", "farm.toml: unknown key 'nodes'; did you mean 'job.nodes'?"),
        ("[job]\nengine = 'none'", "farm.toml: unknown key 'job.engine'; did you mean 'server.engine'?"),
        ("[jobs]\nnodes = 4", "farm.toml: unknown key 'jobs'; did you mean 'job'?"),
        ("[zzz]\nnodes = 4", "farm.toml: unknown key 'zzz'"),
        ("job = 4", "farm.toml: 'job' is a section; write it as [job]"),
        ("[job.nodes]\nx = 1", "farm.toml: job.nodes: input should be a valid integer"),
        ("[job]\nnodes = 'two'", "(got 'two')"),
        ("[job]\nnodes = true", "farm.toml: job.nodes: must not be true or false (got True)"),
        ("[job]\nnodes = 0", "farm.toml: job.nodes: input should be greater than or equal to 1 (got 0)"),
        ("[job]\naccount = 5", "farm.toml: job.account: input should be a valid string (got 5)"),
        ("[job]\ntime = 'soon'", "farm.toml: job.time: must be a Slurm time limit"),
        ("[job]\nextra_directives = '-x'", "farm.toml: job.extra_directives: input should be a valid tuple"),
        ("[job]\nextra_directives = [1]", "farm.toml: job.extra_directives: input should be a valid string (got 1)"),
        ("[server.environment]\n'A B' = '1'", "farm.toml: server.environment: must be the name of an environment"),
        ("run_root = 5", "farm.toml: run_root: input should be a valid string (got 5)"),
        ("run_root = '$NO_SUCH/x'", "farm.toml: run_root: '$NO_SUCH/x' uses $NO_SUCH, which is not set"),
        ("run_root = '~nobody-has-this-name'", "farm.toml: run_root: '~nobody-has-this-name' begins with the home"),
        ('[job]\nqos = "a\\nb"', "farm.toml: job.qos: must not contain a line break or a control character"),
        ("[server]\nengine = 'podman'", "server: image: engine 'podman' needs one"),
        ("site = 'perlmuter'", "unknown site 'perlmuter'; the profiles are generic, local, perlmutter"),
        ("site = '../../etc'", "unknown site '../../etc'; the profiles are generic, local, perlmutter"),
        ("site = 5", "unknown site '5'"),
        ("job = [", "farm.toml is not valid TOML: "),
        ("[job]\n[job]", "farm.toml is not valid TOML: "),
    ],
)
def test_what_is_wrong_in_the_file_is_one_line_with_the_nearest_known_word(text, message):
    write(text)
    assert message in refusal()


def test_what_is_wrong_in_the_environment_is_one_line(monkeypatch):
    monkeypatch.setenv("EXATRKX_HPC_JOB_NODE", "4")
    wanted = "environment: unknown variable 'EXATRKX_HPC_JOB_NODE'; did you mean 'EXATRKX_HPC_JOB_NODES'?"
    assert refusal() == wanted
    monkeypatch.delenv("EXATRKX_HPC_JOB_NODE")
    monkeypatch.setenv("EXATRKX_HPC_JOB_NODES", "many")
    assert refusal().startswith("environment: job.nodes: input should be a valid integer")


def test_what_is_wrong_in_a_flag_is_one_line():
    assert refusal(flags={"job.nodes": 0}).startswith("flag: job.nodes: input should be greater")


def test_a_file_that_is_not_there_says_what_makes_one():
    assert refusal(file=Path("none.toml")) == "none.toml does not exist; create it with 'exatrkx-hpc init SITE'"


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "latin1.toml").write_bytes(b'name = "caf\xe9"')
    for path in (tmp_path / "folder.toml", tmp_path / "latin1.toml", Path("x" * 5000)):
        assert "cannot be read" in refusal(file=path)


def test_a_file_that_nobody_may_read_is_one_line(tmp_path):
    path = write('name = "secret"')
    path.chmod(0)
    tmp_path.chmod(0o700)
    root = os.geteuid() == 0  # whom no mode stops
    if root:
        os.seteuid(65534)
    try:
        assert "cannot be read: [Errno 13]" in refusal(file=tmp_path / path)
    finally:
        if root:
            os.seteuid(0)


def test_utf8_is_read_as_utf8_whatever_the_locale():
    Path("farm.toml").write_bytes('run_root = "/données"'.encode())
    assert resolve().farm.run_root == "/données"


def test_nearest_says_nothing_about_a_word_like_no_other():
    assert nearest("qqqqqq", tuple(known_keys())) == ""


def test_the_profiles_are_the_known_ones():
    assert site_names() == SITES


@pytest.mark.parametrize("site", SITES)
def test_the_commented_file_of_a_site_is_the_site(site):
    write(commented_file(site))
    assert resolve().farm == resolve(Path(os.devnull), flags={"site": site}).farm


@pytest.mark.parametrize("site", SITES)
def test_the_commented_file_with_every_line_in_force_is_the_site_too(site):
    text = commented_file(site)
    text, count = re.subn(r"(?m)^# (\w+ = )", r"\1", text)
    assert count == len(list(known_keys())) - 1, "every key but the site"
    write(text)
    done = resolve()
    assert done.farm == resolve(Path(os.devnull), flags={"site": site}).farm
    assert set(done.sources.values()) == {"farm.toml"}


def test_the_commented_file_tells_what_each_key_is():
    lines = commented_file("generic").splitlines()
    for i, line in enumerate(lines):
        if " = " in line:
            assert re.fullmatch(r"# \S.{5,}", lines[i - 1]), line


class TestCommands:
    """`init`, `config show` and `config schema`, as a person calls them."""

    def call(self, *arguments: str) -> str:
        done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    def test_init_writes_the_file_that_is_read(self):
        assert "farm.toml written" in self.call("init", "perlmutter")
        assert resolve().sources["site"] == "farm.toml"

    def test_init_never_overwrites(self):
        write("# mine")
        with pytest.raises(ConfigError, match="already exists"):
            self.call("init", "local")
        assert Path("farm.toml").read_text() == "# mine"
        self.call("init", "local", "--out", "other.toml")
        assert resolve(Path("other.toml")).farm.site == "local"

    def test_init_refuses_an_engine_that_nobody_knows(self):
        with pytest.raises(ConfigError, match=r"^--engine: input should be 'shifter', .* \(got 'dokcer'\)$"):
            self.call("init", "perlmutter", "--engine", "dokcer")
        assert not Path("farm.toml").exists()

    def test_init_does_not_write_through_a_link(self):
        Path("farm.toml").symlink_to("elsewhere.toml")
        with pytest.raises(ConfigError, match="already exists"):
            self.call("init", "local")
        assert not Path("elsewhere.toml").exists()

    def test_init_in_no_folder_or_for_no_site_writes_nothing(self, tmp_path):
        with pytest.raises(ConfigError, match="No such file or directory"):
            self.call("init", "local", "--out", "none/farm.toml")
        with pytest.raises(ConfigError, match="unknown site 'locla'"):
            self.call("init", "locla")
        assert list(tmp_path.iterdir()) == []

    def test_schema_is_json_with_a_description_for_every_key(self):
        schema = json.loads(self.call("config", "schema"))

        def check(node, prefix=""):
            for name, field in node["properties"].items():
                reference = field.get("$ref") or next((part["$ref"] for part in field.get("allOf", [])), "")
                if reference:
                    yield from check(schema["$defs"][reference.rpartition("/")[2]], f"{prefix}{name}.")
                else:
                    assert field["description"], name
                    yield f"{prefix}{name}"

        assert list(check(schema)) == list(known_keys())
        assert schema["additionalProperties"] is False

    def test_show_prints_every_key_with_value_and_source(self):
        rows = json.loads(self.call("config", "show", "--site", "perlmutter", "--json"))
        assert list(rows) == list(known_keys())
        assert rows["job.gpus_per_node"] == {"value": 4, "source": "profile perlmutter"}
        assert rows["site"] == {"value": "perlmutter", "source": "flag"}
        text = self.call("config", "show", "--site", "perlmutter")
        assert all(key in text for key in known_keys())

    def test_the_shell_has_filled_in_the_variables_of_a_flag(self):
        script = self.call("deploy", "--dry-run", "--run-root", "/data/$HOME")
        assert "run_dir='/data/$HOME'/$SLURM_JOB_ID" in script


def test_what_a_farm_says_of_itself_can_be_read_again():
    farm = resolve(flags={"site": "perlmutter"}).farm
    assert Farm.model_validate_json(farm.model_dump_json()) == farm


@pytest.mark.parametrize(
    ("flags", "cpus"),
    [
        ({}, 64),
        ({"server.servers_per_node": 4, "server.gpus_per_server": 1}, 16),
        ({"server.servers_per_node": 3}, 21),
        ({"job.gpus_per_node": 1, "job.qos": "shared"}, 16),
        ({"job.gpus_per_node": 0}, 0),
        ({"job.gpus_per_node": 1, "server.servers_per_node": 16, "cluster.cores_per_gpu": 4}, 1),
        ({"job.cpus_per_task": 7}, 7),
        ({"site": "generic"}, 0),
    ],
)
def test_each_server_gets_its_share_of_the_cpus_that_come_with_the_gpus(flags, cpus):
    assert resolve(flags={"site": "perlmutter", **flags}).farm.job.cpus_per_task == cpus


@pytest.mark.parametrize(
    ("flags", "account"),
    [
        ({"job.account": "m1234_g"}, "m1234"),
        ({"job.account": "m1234"}, "m1234"),
        ({"job.account": "m1234_g", "clients.account": "m9_g"}, "m9_g"),
        ({"job.account": "m1234_g", "clients.constraint": "gpu"}, "m1234_g"),
        ({"job.account": "m1234_g", "site": "generic"}, "m1234_g"),
        ({}, ""),
    ],
)
def test_workers_on_cpu_nodes_are_charged_in_cpu_hours(flags, account):
    farm = resolve(flags={"site": "perlmutter", **flags}).farm
    assert farm.clients.account == account
    assert farm.job.account == flags.get("job.account", "")


@pytest.mark.parametrize(("text", "port"), [("user", "user"), ("0", 0), ("65535", 65535)])
def test_a_port_is_a_number_or_the_users_own(monkeypatch, text, port):
    monkeypatch.setenv("EXATRKX_HPC_BALANCER_GRPC_PORT", text)
    assert resolve().farm.balancer.grpc_port == port


@pytest.mark.parametrize("value", ["mine", "65536", "-1", "1.5", "", "٩", 70000, -1, 1.5, True, None, []])
def test_what_is_no_port_is_said_in_one_line(value):
    line = refusal(flags={"balancer.grpc_port": value})
    assert "balancer.grpc_port: must " in line


def test_init_takes_the_two_values_that_every_user_has(tmp_path):
    words = ["init", "perlmutter", "--account", "m1234_g", "--engine", "podman-hpc", "--out", "my.toml"]
    assert CliRunner().invoke(app, words).exit_code == 0
    found = resolve(Path("my.toml"))
    assert (found.farm.job.account, found.sources["job.account"]) == ("m1234_g", "my.toml")
    assert (found.farm.server.engine, found.farm.site) == ("podman-hpc", "perlmutter")
    mine = {key for key, source in found.sources.items() if source == "my.toml"}
    assert mine == {"site", "job.account", "server.engine"}


@pytest.mark.parametrize("engine", ["shifter", "podman-hpc", "podman", "apptainer"])
def test_the_image_of_a_profile_serves_whatever_engine_is_named(engine):
    flags = {"site": "perlmutter", "server.engine": engine}
    assert engine_faults(resolve(flags=flags).farm) == ()
