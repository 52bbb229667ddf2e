"""The keys whose signed audits a ledger takes."""

from scissorhands_jax.deletion import signing
from scissorhands_jax.deletion.ledger import Ledger
from scissorhands_jax.deletion.trusted_keys import trusted_keys
from tests.deletion.commands import command, error_of


def test_a_key_whose_file_is_lost_can_be_untrusted(folder, tmp_path, capsys):
    key = signing.LedgerKeys(bytes(32), bytes(range(32))).public
    (tmp_path / "auditor.pem").write_bytes(signing.public_pem(key))
    assert command("trust", "--ledger", folder, tmp_path / "auditor.pem") == 0
    (tmp_path / "auditor.pem").unlink()
    assert command("untrust", "--ledger", folder, "0" * 64) == 2
    assert f"the key {'0' * 64} is not trusted" in error_of(capsys)
    assert command("untrust", "--ledger", folder, key) == 0
    with Ledger(folder) as book:
        assert trusted_keys(book) == []
