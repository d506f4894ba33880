import subprocess

from harness.runs import environment as env


def test_the_fingerprint_changes_with_what_times_depend_on_and_with_nothing_else():
    facts = env.environment("cpu")
    assert facts["fingerprint"] == env.fingerprint(facts) and facts["packages"]["torch"]
    assert env.fingerprint(facts | {"python": "9", "memory_bytes": 1, "git": None}) == facts["fingerprint"]
    for change in ({"cpu": "abacus"}, {"threads": 99}, {"device": "cuda"}, {"packages": {"torch": "0"}}):
        assert env.fingerprint(facts | change) != facts["fingerprint"]


def test_git_state(tmp_path):
    assert env.git_state(tmp_path / "absent") is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "file").write_text("1")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "first"], check=True)
    clean = env.git_state(tmp_path)
    assert len(clean["commit"]) == 40 and not clean["changed"]
    (tmp_path / "file").write_text("2")
    assert env.git_state(tmp_path) == clean | {"changed": True}


def test_a_digest_of_sources_sees_contents_and_names(tmp_path):
    one, two = tmp_path / "one.py", tmp_path / "two.py"
    one.write_text("x"), two.write_text("y")
    both = env.digest_sources([one, two], tmp_path)
    assert both == env.digest_sources([one, two], tmp_path) != env.digest_sources([one], tmp_path)
    one.write_text("z")
    assert env.digest_sources([one, two], tmp_path) != both
