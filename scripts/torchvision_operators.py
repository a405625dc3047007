"""Declare torchvision's operators where its compiled library cannot be loaded (CPU torch beside a CUDA torchvision).

`make install` copies this file into the virtual environment, with a `.pth` line that imports it at start-up, only when
`import torchvision` fails; docs/environment.md has the whole story. Nothing but `sys` is imported here, so that Python
starts as fast as before: torch comes in when torchvision itself asks for it.

torchvision registers shape functions for `nms` and `qnms` while it is imported, which fails when its C++ library
declared neither. Declaring them is enough: what we use of torchvision (image transforms) never calls them.
"""

import sys


class _DeclareTorchvisionOperators:
    """Meta-path finder that finds nothing, but declares the operators just before the module that needs them loads."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "torchvision._meta_registrations":
            sys.meta_path.remove(_DeclareTorchvisionOperators)
            import torch

            missing = [operator for operator in ("nms", "qnms") if not hasattr(torch.ops.torchvision, operator)]
            if missing:
                library = torch.library.Library("torchvision", "FRAGMENT")
                for operator in missing:
                    library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
                _DeclareTorchvisionOperators.library = library  # the operators live as long as this object
        return None


sys.meta_path.insert(0, _DeclareTorchvisionOperators)
