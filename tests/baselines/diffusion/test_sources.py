import io
import subprocess
import urllib.error

import pytest

from baselines import weights as command
from baselines.diffusion import sources
from baselines.diffusion.sources import FetchError, GitFile, Hub, Part, fetch, of_git


def part(**changes):
    settings = {
        "folder": "thing",
        "title": "The thing",
        "files": ("a.txt", "deep/b.txt"),
        "gigabytes": 1,
        "licence": "MIT",
        "commercial": "yes",
    }
    return Part(**settings | changes)


def test_git_hashes_are_those_of_git(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"some\ncontent\x00")
    told = subprocess.run(["git", "hash-object", file], capture_output=True, text=True, check=True)
    assert of_git(file.read_bytes()) == told.stdout.strip()


def from_git(content, monkeypatch, blob=None):
    """A part of one file in Git, answered with `content`."""
    asked = []

    def open_url(url, timeout):
        asked.append(url)
        return io.BytesIO(content)

    monkeypatch.setattr(sources.urllib.request, "urlopen", open_url)
    source = GitFile("some/one", "abc", "x/a.txt", blob or of_git(b"right"))
    return part(files=("a.txt",), git=(source,)), asked


def test_a_file_from_git_is_taken_at_its_commit(tmp_path, monkeypatch):
    thing, asked = from_git(b"right", monkeypatch)
    fetch(thing, tmp_path)
    assert asked == ["https://raw.githubusercontent.com/some/one/abc/x/a.txt"]
    assert (tmp_path / "thing/a.txt").read_bytes() == b"right"
    fetch(thing, tmp_path)
    assert len(asked) == 1  # what is there is not fetched again


def test_another_content_is_refused_and_not_kept(tmp_path, monkeypatch):
    thing, _ = from_git(b"wrong", monkeypatch)
    with pytest.raises(FetchError, match="5 bytes with the Git hash"):
        fetch(thing, tmp_path)
    assert list(tmp_path.rglob("*")) == []


def test_without_a_network_the_address_is_named(tmp_path, monkeypatch):
    thing, _ = from_git(b"", monkeypatch)

    def fail(url, timeout):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(sources.urllib.request, "urlopen", fail)
    with pytest.raises(FetchError, match=r"raw\.githubusercontent\.com/.*no route"):
        fetch(thing, tmp_path)


def hub_with(repos, monkeypatch):
    import huggingface_hub

    asked = []

    def download(repo, name, *, revision, repo_type, local_dir):
        asked.append((repo, name, revision, repo_type))
        if repo not in repos:
            raise OSError("404")
        target = local_dir / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(repo)
        return str(target)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


def test_hubs_are_tried_in_order_and_folders_there_are_left_out_here(tmp_path, monkeypatch):
    asked = hub_with({"second/one"}, monkeypatch)
    hubs = (Hub("first/one", "rev"), Hub("second/one", kind="space", folder="sub"))
    fetch(part(hubs=hubs), tmp_path)
    assert asked[0] == ("first/one", "a.txt", "rev", "model")
    assert asked[1] == ("second/one", "sub/a.txt", None, "space")
    assert part().absent(tmp_path) == ()
    assert (tmp_path / "thing/deep/b.txt").read_text() == "second/one"


def test_if_none_has_it_all_are_named_with_the_way_by_hand(tmp_path, monkeypatch):
    hub_with(set(), monkeypatch)
    with pytest.raises(FetchError, match=r"first/one on the Hugging Face hub: 404; on a disc"):
        fetch(part(hubs=(Hub("first/one"),), by_hand="on a disc"), tmp_path)


def test_what_is_missing_is_a_sentence_with_the_command(tmp_path):
    sentence = sources.missing("Thing", "thing", (part(),), tmp_path)
    assert "thing/a.txt and 1 more" in sentence
    assert f"python -m baselines.weights thing --dir {tmp_path}" in sentence
    for file in part().files:
        (tmp_path / "thing" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "thing" / file).write_text("")
    assert sources.missing("Thing", "thing", (part(),), tmp_path) is None


def test_the_command_knows_every_method_with_weights():
    assert {"osediff", "seesr", "stablesr", "diffbir"} <= set(command.needs())


def test_the_command_reports_terms_fetches_and_says_whether_all_is_there(
    tmp_path, monkeypatch, capsys
):
    hub_with({"first/one"}, monkeypatch)
    methods = {"thing": (part(hubs=(Hub("first/one"),)),)}
    (line,) = command.report(methods["thing"], tmp_path)
    assert "missing, about 1 GB" in line
    assert "MIT" in line
    arguments = ["thing", "--dir", str(tmp_path)]
    assert command.main([*arguments, "--check"], methods=methods) == 1
    assert command.main(arguments, methods=methods) == 0
    (line,) = command.report(methods["thing"], tmp_path)
    assert ": there." in line


def test_the_command_fails_if_something_stays_missing(tmp_path, monkeypatch):
    hub_with(set(), monkeypatch)
    methods = {"thing": (part(hubs=(Hub("first/one"),)),)}
    assert command.main(["thing", "--dir", str(tmp_path)], methods=methods) == 1
    assert len(command.complete(methods["thing"], tmp_path)) == 1


def test_every_file_has_a_source_or_a_way_by_hand():
    for parts in command.needs().values():
        for each in parts:
            assert each.hubs or each.git or each.by_hand, each.title
            assert each.licence, each.title
            assert each.commercial, each.title
