"""The word check finds what it is there for, and nothing else."""

from __future__ import annotations

import pytest

from words import EXEMPT, FOLDERS, INSTEAD, ROOT, main, project_files, words_in


@pytest.mark.parametrize("word", INSTEAD)
def test_every_word_fails_the_check(word, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"Fine.\nAn {word.upper()} here.\n")
    assert main([str(page)]) == 1
    assert capsys.readouterr().out == f"{page}:2: '{word}'; say: {INSTEAD[word]}\n"


@pytest.mark.parametrize("name", ["PictureGuard", "_pictures", "test_ruling_of_a_chat", "sifted"])
def test_words_within_names_are_found(name):
    assert words_in(f"class {name}:")


def test_a_file_of_that_name_is_found(tmp_path, capsys):
    (tmp_path / "pictures.py").write_text("")
    assert main([str(tmp_path / "pictures.py")]) == 1


def test_a_line_may_quote_an_old_name():
    assert words_in('OLD = "picture"  # words: allow') == []


@pytest.mark.parametrize("line", ["image", "imagery", "shift", "filter", "scheduling", "who", "written, anew"])
def test_other_words_pass(line):
    assert words_in(line) == []


def test_every_folder_and_exempt_file_exists():
    files = project_files()
    assert set(EXEMPT) <= set(files)
    assert all((ROOT / folder).is_dir() for folder in FOLDERS)
    assert "guardalign_guardrails/verdict.py" in files


def test_lint_runs_the_check_and_it_passes():
    lint = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nlint:")[2].partition("\n\n")[0]
    assert "tools/words.py" in lint
    assert main(project_files()) == 0
