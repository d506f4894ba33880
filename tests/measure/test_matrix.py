import tomllib

import pytest

from harness.errors import HarnessError
from harness.measure.expand import expand
from harness.measure.matrix import Matrix, load_matrix, matrices
from harness.options import parse_decoder

UNSAID = {"name", "description", "enabled", "components", "annealed", "temperature"}
"""Keys that say themselves, and those of `Guidance`, which its table refers to."""

BASE = """
[[datasets]]
name = "digits"
[[decoders]]
name = "sejd"
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return str(path)

    return write


def test_shipped_matrices_are_valid_in_every_profile():
    assert "quickstart" in matrices()
    for name, path in matrices().items():
        for profile in [None, *tomllib.loads(path.read_text()).get("profiles", {})]:
            assert load_matrix(name, profile).name == name


def test_a_profile_overrides_tables_key_by_key_and_lists_whole(write):
    path = write(
        BASE + "[grid]\ntau=[0.1, 0.2]\nbatch_sizes=[1]\n[timing]\nrounds=9\nwarmup=3\n"
        "[profiles.fast]\ngrid={tau=[0.7]}\ntiming={rounds=5}\n"
    )
    plain, fast = load_matrix(path), load_matrix(path, "fast")
    assert (plain.grid.tau, plain.timing.rounds) == ([0.1, 0.2], 9)
    assert (fast.grid.tau, fast.grid.batch_sizes, fast.timing.rounds, fast.timing.warmup) == ([0.7], [1], 5, 3)


def test_decoders_of_the_command_line_are_added(write):
    matrix = load_matrix(write(BASE), overrides={"decoders": [parse_decoder("ujd norm=rms")], "device": "cpu"})
    assert [(decoder.name, decoder.options) for decoder in matrix.decoders] == [("sejd", {}), ("ujd", {"norm": "rms"})]
    assert matrix.device == "cpu"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (BASE + "[grid]\ntau = [0.5, -0.5]", ["'grid.tau[1]'", "greater than or equal to 0", "-0.5"]),
        (BASE + "[grid]\ntau = [nan]", ["'grid.tau[0]'", "finite"]),
        (BASE + "[grid]\nbatch_sizes = [0]", ["'grid.batch_sizes[0]'", "greater than or equal to 1", "not 0"]),
        (BASE + "[grid]\nbatch_sizes = [1.5]", ["'grid.batch_sizes[0]'", "integer", "1.5"]),
        (BASE + "[grid]\nbatch_sizes = []", ["'grid.batch_sizes'", "at least 1"]),
        (BASE + "[grid]\nseeds = [-1]", ["'grid.seeds[0]'"]),
        (BASE + "[grid]\nbatchsizes = [1]", ["[grid] has no key 'batchsizes'", "did you mean 'batch_sizes'"]),
        (BASE + "[timing]\nrounds = 0", ["'timing.rounds'"]),
        (BASE + "[tming]\nrounds = 5", ["has no key 'tming'", "did you mean 'timing'"]),
        (BASE + "[profile.fast]\ntiming = {rounds=5}", ["has no key 'profile'", "did you mean 'profiles'"]),
        (BASE + "label = 3", ["'decoders[0].label'", "string"]),
        (BASE + "tau = 'low'", ["'decoders[0].tau'"]),
        (BASE + "[[exclude]]\ndecoder = 'sejdd'", ["unknown decoder 'sejdd'", "did you mean 'sejd'"]),
        (BASE + "[[include]]\nbatch = 3", ["[include[0]] has no key 'batch'", "batch_size"]),
        ("decoders = []\n[[datasets]]\nname='digits'", ["'decoders'", "at least 1"]),
        ("[[datasets]]\nname='digits'", ["'decoders' is missing"]),
        ("[[datasets]]\nname='digits'\nguidance=[{scal=1.0}]", ["[datasets[0].guidance[0]] has no key 'scal'"]),
        ("this is no toml", ["cannot be read as TOML"]),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_key(write, text, parts):
    with pytest.raises(HarnessError) as caught:
        load_matrix(write(text))
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert "\n" not in str(caught.value) and "mine.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("mistake", "meant"),
    [("lable", "label"), ("labell", "label"), ("ta", "tau"), ("sequential_layer", "sequential_layers")],
)
def test_a_misspelt_key_of_a_decoder_finds_the_matrix_s_own_keys_too(write, mistake, meant):
    with pytest.raises(HarnessError, match=f"unknown option of decoder 'sejd': '{mistake}'; did you mean '{meant}'"):
        expand(load_matrix(write(BASE + f"{mistake} = 'mine'")))


def test_what_is_no_decoder_is_told_so(write):
    with pytest.raises(HarnessError, match="'json:dumps' is no decoder"):
        expand(load_matrix(write(BASE.replace("sejd", "json:dumps"))))


def test_the_schema_knows_every_key_of_the_shipped_matrices():
    """Each table of a file by the schema that an editor would check it with."""
    schema = Matrix.model_json_schema()

    def unknown(data, table):
        if "$ref" in table:
            table = schema["$defs"][table["$ref"].rpartition("/")[2]]
        if isinstance(data, list):
            options = [table, *table.get("anyOf", [])]
            items = next((option["items"] for option in options if "items" in option), {})
            return [key for part in data for key in unknown(part, items)]
        if not isinstance(data, dict):
            return []
        known, more = table.get("properties", {}), table.get("additionalProperties", True)
        assert set(table.get("required", ())) <= set(data)
        return [
            found
            for key, value in data.items()
            for found in (
                unknown(value, known[key]) if key in known else unknown(value, more) if isinstance(more, dict)
                else [] if more else [key]
            )
        ]  # fmt: skip

    for path in matrices().values():
        assert unknown(tomllib.loads(path.read_text()), schema) == []
    wrong = {"datasets": [{"name": "a", "siz": 1}], "decoders": [], "profiles": {"fast": {"tming": {}}}}
    assert unknown(wrong, schema) == ["siz", "tming"]


def test_every_key_of_a_matrix_is_explained():
    schema = Matrix.model_json_schema()
    for table in (schema, *schema["$defs"].values()):
        told = table["description"]
        assert [key for key in table["properties"] if key.rstrip("s") not in told and key not in UNSAID] == []


def test_unknown_matrix_and_profile(write):
    with pytest.raises(HarnessError, match="did you mean 'quickstart'"):
        load_matrix("quickstrat")
    with pytest.raises(HarnessError, match="there is no matrix at"):
        load_matrix("absent.toml")
    with pytest.raises(HarnessError, match="profile"):
        load_matrix(write(BASE), "fast")


def test_a_decoder_on_the_command_line():
    assert parse_decoder("gs-jacobi groups=[8,1] initial=input tau=0.5 flag=true") == {
        "name": "gs-jacobi",
        "groups": [8, 1],
        "initial": "input",
        "tau": 0.5,
        "flag": True,
    }
    for wrong in ("", "  ", "sejd tau", "sejd =3"):
        with pytest.raises(HarnessError):
            parse_decoder(wrong)
