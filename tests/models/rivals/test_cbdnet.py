"""CBD-Net against the facts that its paper states."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from dakd.config import StudentConfig
from dakd.data.transforms import to_student
from dakd.models.registry import build_student
from dakd.models.resnet import ResNet18
from dakd.models.rivals.cbdnet import SCSE, CBDNet, DilatedCentre


def test_the_net_has_the_parameters_counted_by_hand():
    with torch.device("meta"):
        net = build_student(StudentConfig(name="cbdnet"), 2)
    gates = sum(c * c + c for c in (64, 128, 256, 512))  # 1x1 to C/2 and back, and 1x1 to one, none with a bias
    centre = 4 * (512 * 512 * 9 + 512)

    def block(c_in: int, c_out: int) -> int:
        n = c_in // 4
        return (c_in * n + n + 2 * n) + (n * n * 9 + n + 2 * n) + (n * c_out + c_out + 2 * c_out)

    decoder = block(512, 256) + block(256, 128) + block(128, 64) + block(64, 64)
    head = (64 * 32 * 16 + 32) + (32 * 32 * 9 + 32) + (32 * 2 * 9 + 2)
    assert sum(p.numel() for p in net.parameters()) == 21_284_672 + gates + centre + decoder + head == 31_445_538


def test_the_gates_are_those_of_the_formula():
    torch.manual_seed(0)
    gate, x = SCSE(6), torch.randn(2, 6, 3, 4)
    w1, w2, ws = (m.weight[..., 0, 0] for m in (gate.squeeze, gate.excite, gate.spatial))
    for sample, out in zip(x, gate(x)):
        channel = torch.sigmoid(w2 @ (w1 @ sample.mean(dim=(1, 2))))
        place = torch.sigmoid(torch.einsum("c,chw->hw", ws[0], sample))
        torch.testing.assert_close(out, sample * channel[:, None, None] + sample * place)


def test_the_centre_is_a_chain_whose_parts_are_all_summed():
    torch.manual_seed(0)
    centre, x = DilatedCentre(3), torch.randn(1, 3, 9, 9)
    parts = [x]
    for c, d in zip(centre.convolutions, (1, 2, 4, 8)):
        parts.append(F.relu(F.conv2d(F.pad(parts[-1], [d] * 4), c.weight, c.bias, dilation=d)))
    torch.testing.assert_close(centre(x), sum(parts))


@torch.no_grad()
def test_the_decoder_adds_the_gated_map_of_its_size():
    net = CBDNet(ResNet18(width=8), 2).eval()
    image, seen = torch.randn(1, 3, 64, 64), []
    for block in net.decoder:
        block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        torch.nn.init.zeros_(block[7].weight)  # so that a block puts out zeros
        torch.nn.init.zeros_(block[7].bias)
    net(image)
    maps = net.encode(image)
    assert [tuple(one.shape[1:]) for one in maps] == [(8, 16, 16), (16, 8, 8), (32, 4, 4), (64, 2, 2)]
    assert torch.equal(seen[0], net.centre(maps[3]))
    for block_input, skip in zip(seen[1:], reversed(maps[:3])):
        assert torch.equal(block_input, skip) and skip.any()


def test_the_image_comes_on_cbd_nets_own_scale():
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    net = CBDNet(ResNet18(width=8), 2)
    wanted = (grey.float() / 255 * 3.2 - 1.6).expand(1, 3, 16, 16)
    torch.testing.assert_close(net.rescale(to_student(grey)), wanted, rtol=0, atol=1e-6)
    assert not any("image" in key for key in net.state_dict())
