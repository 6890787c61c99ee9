"""What is handed in: the .pt, the .csv, and the verdict on them."""

import io
import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import tiny
import torch
from conftest import ROOT, SAMPLE, SAMPLE_SHA256
from torch import nn

from run import load_definitions, tagged

pytestmark = pytest.mark.filterwarnings("ignore")
NOTEBOOK = nbformat.read(ROOT / "DL_HW3_StudentID.ipynb", as_version=4)


def trained_model(hw):
    """A model in train mode whose every number, batch norm's averages among them, differs from a new one's."""
    torch.manual_seed(4)
    model = hw.myViT(**tiny.MODEL)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    with torch.no_grad():
        model(torch.rand(8, 3, 32, 32))
    return model


def content_of(hw, model, top_codes=(9, 3)):
    return hw.saved(hw.Packed(hw.pack(model, top_codes, "01234567")))


@pytest.mark.parametrize("top_codes", [(), (127, 127), (9, 3)])
def test_a_loaded_model_has_the_same_bytes_and_rounded_weights(hw, top_codes):
    model = trained_model(hw)
    content = content_of(hw, model, top_codes)
    again = torch.load(io.BytesIO(content))
    assert isinstance(again, hw.myViT) and not any(m.training for m in again.modules())
    assert (again.fingerprint, again.top_codes) == ("01234567", top_codes)
    assert content_of(hw, trained_model(hw), top_codes) == content_of(hw, again, top_codes) == content
    for (name, tensor), other in zip(again.state_dict().items(), model.state_dict().values(), strict=True):
        top = top_codes[int(name[7])] if top_codes and tensor.ndim == 2 and "stages" in name else 127
        if "running" in name or (not top_codes and "tracked" not in name):
            assert torch.equal(tensor, other.half().float() if top_codes else other)
        elif "tracked" not in name:
            assert (tensor - other).abs().max() < 0.51 * other.abs().max() / top


def test_plain_load_wherever_the_definitions_were_run_and_a_telling_error_elsewhere(tmp_path):
    definitions = "\n\n".join(cell.source for cell in tagged(NOTEBOOK, "definitions"))
    (tmp_path / "save.py").write_text(f"""{definitions}\n
model = myViT(**{tiny.MODEL!r}).eval()
Path("model.pt").write_bytes(saved(Packed(pack(model, ()))))
print(model(torch.ones(1, 3, 32, 32) / 3).tolist())""", "utf-8")
    (tmp_path / "load.py").write_text(f"""import torch
for options in (dict(), dict(weights_only=False)):
    try:
        torch.load("model.pt", **options)
    except Exception as error:
        assert "run_the_notebooks_definitions_first" in str(error), error
{definitions}\n
for options in (dict(), dict(weights_only=False), dict(map_location="cpu")):
    model = torch.load("model.pt", **options)
    assert isinstance(model, nn.Module) and not model.training
    print(model(torch.ones(1, 3, 32, 32) / 3).tolist())""", "utf-8")
    written, read = (subprocess.run([sys.executable, name], cwd=tmp_path, check=True, stdout=subprocess.PIPE).stdout
                     for name in ("save.py", "load.py"))
    assert read == 3 * written and len(json.loads(written)[0]) == 10


@pytest.mark.parametrize("change, message", [
    (lambda m: setattr(m.head, "1", nn.Linear(8, 4)), r"size mismatch for head\.1\.weight"),
    (nn.DataParallel, r"model is a DataParallel; .*\.module"),
    (lambda m: m.head.append(nn.Tanh()), "computes something else")])
def test_a_changed_module_is_refused_with_what_differs(hw, change, message):
    changed = change(model := trained_model(hw))
    with pytest.raises(ValueError, match=f"(?s){message}"):
        hw.pack(changed if isinstance(changed, nn.DataParallel) else model, (9, 3))


@pytest.mark.parametrize("more", [True, False])
def test_a_file_of_other_layers_is_refused(hw, monkeypatch, more):
    content = content_of(hw, trained_model(hw))
    before = hw.myFFN.__init__

    def changed(self, input_dim, hidden_dim):
        before(self, input_dim, hidden_dim)
        if more:
            self.scale = nn.Parameter(torch.ones(hidden_dim))  # a parameter more
        else:
            self.linear2 = nn.Linear(hidden_dim, input_dim, bias=False)  # one less

    monkeypatch.setattr(hw.myFFN, "__init__", changed)
    with pytest.raises(ValueError, match="layers are not those"):
        torch.load(io.BytesIO(content))


def test_a_changed_byte_is_refused_wherever_it_is(hw):
    content = content_of(hw, trained_model(hw))
    for at in range(0, len(content), 23):
        altered = bytearray(content)
        altered[at] ^= 4
        try:
            again = torch.load(io.BytesIO(altered))
        except Exception:
            continue
        assert hw.saved(hw.Packed(hw.pack(again, again.top_codes, again.fingerprint))) == content, at


@pytest.fixture(scope="module")
def verified():
    """Definitions of their own, because the verdict runs the notebook's checks among them."""
    return load_definitions(name="homework_verified")


@pytest.fixture
def verify(verified, sample, tmp_path, monkeypatch, capsys):
    """verify() for a model and its predictions on the sample: {line: (verdict, detail)}."""
    monkeypatch.chdir(tmp_path)
    model = trained_model(verified).eval()
    answers = verified.predict(model, torch.from_numpy(sample[2])).argmax(dim=1).tolist()
    Path("B1_submission.pt").write_bytes(content_of(verified, model, ()))
    verified.pd.Series(answers, range(1, 31), name="Prediction").to_csv("B1_submission.csv", index_label="ImageId")

    def verify(sources=()):
        verified.verify("B1", "CIFAR10", str(SAMPLE.parent), SAMPLE_SHA256, list(sources), None)
        lines = capsys.readouterr().out.splitlines()
        return {line[6:38].strip(): (line[:4].strip(), line[38:].strip()) for line in lines}
    return verify


def failed(verdicts):
    return [line for line, (verdict, _) in verdicts.items() if verdict != "yes"]


def test_verify_lists_what_a_machine_can_check_and_finds_a_layer_that_does_nothing(verify, verified, monkeypatch):
    sources, untrained = [c.source for c in NOTEBOOK.cells if c.cell_type == "code"], "accuracy above 57 %"
    verdicts = verify(sources=sources)
    assert failed(verdicts) == [untrained] and len(verdicts) == 11
    for ready in ("nn.MultiheadAttention(8, 2)", "from torch.nn import Linear, Transformer",
                  "from torch.nn.functional import scaled_dot_product_attention",
                  "torch.nn.functional.scaled_dot_product_attention(q, k, v)"):
        assert failed(verify(sources=[*sources, ready])) == ["no ready-made attention", untrained], ready
    for name in ("myFFN", "mySingleHeadAttention", "myMultiHeadAttention", "myTransformer"):
        with monkeypatch.context() as patch:
            patch.setattr(getattr(verified, name), "forward", lambda self, x, *_, **__: x)
            assert any(name in line for line in failed(verify(sources=sources)) if line != untrained), name


def test_numbers_with_buffers_and_the_file_have_to_stay_below_1_mb(verify, verified):
    model = verified.myViT(**tiny.MODEL | dict(mlp_dims=(9, 18_000))).eval()
    numbers = sum(t.numel() for t in (*model.parameters(), *model.buffers()))
    Path("B1_submission.pt").write_bytes(content := content_of(verified, model, ()))
    verdicts = verify()
    assert verdicts["below 1 MB as float32"] == ("NO", f"4 x {numbers:,} = {4 * numbers:,}")
    assert verdicts["below 1 MB as a file"] == ("NO", f"{len(content):,} bytes")


@pytest.mark.parametrize("others, verdict", [(1, "yes"), (2, "NO")])
def test_agreement_is_999_of_1000(verify, verified, monkeypatch, others, verdict):
    images, answers = verified.read_cache(SAMPLE.parent)[0][2], Path("B1_submission.csv").read_text().split("\n")[1:31]
    data = [None, None, torch.from_numpy(images)[torch.arange(1000) % 30], torch.zeros(1000)]
    monkeypatch.setattr(verified, "load_dataset", lambda *_: (data, range(10)))
    rows = [f"{i},{(int(answers[(i - 1) % 30][-1]) + (i <= others)) % 10}" for i in range(1, 1001)]
    Path("B1_submission.csv").write_text("\n".join(["ImageId,Prediction", *rows]))
    assert verify()["csv agrees with the model"] == (verdict, f"{1000 - others} of 1,000 rows")


def test_a_csv_that_went_through_a_spreadsheet(verify):
    path = Path("B1_submission.csv")
    of_the_model = verify()["accuracy above 57 %"]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    verdicts = verify()
    verdict, detail = verdicts["csv in the promised form"]
    assert verdict == "NO" and "byte-order mark" in detail and verdicts["accuracy above 57 %"] == of_the_model
