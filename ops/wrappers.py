"""stub"""

from torch import nn


def inner(model: nn.Module) -> nn.Module:
    from torch._dynamo import OptimizedModule
    from torch.nn.parallel import DistributedDataParallel
    from torch.optim.swa_utils import AveragedModel

    while True:
        if isinstance(model, OptimizedModule):
            model = model._orig_mod
        elif isinstance(model, (DistributedDataParallel, nn.DataParallel, AveragedModel)):
            model = model.module
        else:
            return model
