import pytest

from chexpert_hf.app.server.credentials import read_credentials
from chexpert_hf.errors import InputError


def test_users_come_from_a_file_or_the_environment(tmp_path):
    file = tmp_path / "users"
    file.write_text("ada:correct horse: battery\n\nbob:another one\n")
    file.chmod(0o600)
    assert read_credentials(file, "x:not looked at") == [("ada", "correct horse: battery"), ("bob", "another one")]
    assert read_credentials(None, "ada:long enough") == [("ada", "long enough")]
    assert read_credentials(None, None) == []


def test_a_file_that_others_may_read_is_refused(tmp_path):
    file = tmp_path / "users"
    file.write_text("ada:long enough")
    file.chmod(0o644)
    with pytest.raises(InputError, match="Others may read"):
        read_credentials(file, None)


@pytest.mark.parametrize("line", ["ada", "ada:short", ":long enough"])
def test_what_is_no_user_and_password_is_refused_without_repeating_it(line):
    with pytest.raises(InputError, match="at least 8 characters") as raised:
        read_credentials(None, line)
    assert line not in str(raised.value)


def test_an_empty_file_does_not_open_the_page_to_all(tmp_path):
    file = tmp_path / "users"
    file.touch(0o600)
    with pytest.raises(InputError, match="is empty"):
        read_credentials(file, None)
