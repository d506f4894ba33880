"""torchvision imports whether or not its compiled operators load; each case in a process of its own."""

import subprocess
import sys
import textwrap

import pytest


def run(code):
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_cleanfid_imports_after_the_declaration():
    (again,) = run("""
        from harness.metrics.torchvision_compat import declare_missing_operators
        first = declare_missing_operators()
        import cleanfid.features, torch
        assert torch.ops.torchvision.nms is not None and torch.ops.torchvision.qnms is not None
        print(declare_missing_operators() == first)
    """)
    assert again == "True"


@pytest.mark.parametrize(
    ("there", "declared"), [(["nms", "qnms"], []), (["nms"], ["qnms"]), (["qnms"], ["nms"]), ([], ["nms", "qnms"])]
)
def test_only_what_is_missing_is_declared(there, declared):
    """Whichever of the two torchvision's compiled library brings; `find_spec` finds no library here."""
    assert (
        run(f"""
        import torch
        from harness.metrics import torchvision_compat
        library = torch.library.Library("torchvision", "DEF")
        for name in {there}:
            library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torchvision_compat.find_spec = lambda name: None
        _, declared = torchvision_compat.declare_missing_operators()
        assert torch.ops.torchvision.nms is not None and torch.ops.torchvision.qnms is not None
        print(*declared)
    """)
        == declared
    )


def test_the_need_is_real_or_absent():
    """Without the declaration torchvision imports exactly where `nms`, which all its versions have, is there."""
    (imports, declared) = run("""
        try:
            import torchvision
            imports = True
        except RuntimeError as error:
            assert "torchvision::nms" in str(error)
            imports = False
        from harness.metrics.torchvision_compat import declare_missing_operators
        print(imports, "nms" in declare_missing_operators()[1])
    """)
    assert (imports == "True") == (declared == "False")
