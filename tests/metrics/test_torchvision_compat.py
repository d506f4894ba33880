"""torchvision imports whether or not its compiled operators load; each case in a process of its own."""

import subprocess
import sys
import textwrap


def run(code):
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_cleanfid_imports_after_the_declaration():
    (first, again) = run("""
        from harness.metrics.torchvision_compat import declare_missing_operators
        first = declare_missing_operators()
        import cleanfid.features, torch
        assert torch.ops.torchvision.nms is not None and torch.ops.torchvision.qnms is not None
        print(len(first), declare_missing_operators() == first)
    """)
    assert first in ("0", "2")
    assert again == "True"


def test_nothing_is_declared_where_the_operators_exist():
    assert run("""
        import torch
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        from harness.metrics.torchvision_compat import declare_missing_operators
        print(len(declare_missing_operators()))
    """) == ["0"]


def test_the_need_is_real_or_absent():
    """Without the declaration torchvision imports exactly where nothing would have been declared."""
    (imports, declared) = run("""
        try:
            import torchvision
            imports = True
        except RuntimeError as error:
            assert "torchvision::nms" in str(error)
            imports = False
        from harness.metrics.torchvision_compat import declare_missing_operators
        print(imports, len(declare_missing_operators()))
    """)
    assert (imports == "True") == (declared == "0")
