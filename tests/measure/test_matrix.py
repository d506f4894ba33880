import pytest

from harness.errors import HarnessError
from harness.measure.matrix import load_matrix, matrices, parse_decoder

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
    import tomllib

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
