"""The reader of disassembled kernels, on lines in the form the disassembler prints them."""

import pytest

from tests.aot.sass import Disassembly, Resources

RESOURCES = """
Resource usage:
 Common:
  GLOBAL:0
 Function kernel:
  REG:56 STACK:0 SHARED:1024 LOCAL:552 CONSTANT[0]:592 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
HEADER = """
\tcode for sm_90a
\t\tFunction : kernel
\t.headerflags\t@"EF_CUDA_SM90"
"""
MAIN_LOOP = (
    "LDG.E.128 R16, desc[UR14][R30.64]",
    "FADD R18, R18, -R27.reuse",
    "MUFU.EX2 R39, R44",
    "@P0 FADD R40, R42, R39",
    "STG.E.128 desc[UR14][R24.64], R12",
)
MASKED_LOOP = ("@!P4 LDG.E.128 R8, desc[UR14][R36.64+0x800]", "MUFU.EX2 R9, R8")


def disassembly(*instructions: str) -> Disassembly:
    """Of instructions at 0x0000, 0x0010, ..., each followed by the second half of its code."""
    lines = []
    for position, text in enumerate(instructions):
        lines.append(f"        /*{16 * position:04x}*/  {text:>60} ;  /* 0x0000df00ff017b82 */")
        lines.append(f"{'':>80}/* 0x000ff00000000800 */")
    return Disassembly.parse(HEADER + "\n".join(lines))


def kernel(main_loop=MAIN_LOOP, *, jump="@P0 BRA 0x10", tail=()) -> Disassembly:
    """A main loop at 0x10, a loop with a mask, and the padding at the end."""
    after = 0x10 + 16 * (len(main_loop) + 1)
    end = after + 16 * (len(MASKED_LOOP) + 1 + len(tail))
    return disassembly(
        "LDC R1, c[0x0][0x28]", *main_loop, jump, *MASKED_LOOP, f"@P1 BRA {after:#x}", *tail, f"BRA {end:#x}"
    )


def test_instructions():
    parsed = kernel()
    assert len(parsed.instructions) == 11
    add = parsed.instructions[4]
    assert (add.address, add.guard, add.opcode, add.operands) == (0x40, "@P0", "FADD", "R40, R42, R39")
    assert parsed.spills() == [] and parsed.float64() == []


@pytest.mark.parametrize("jump", ["@P0 BRA 0x10", "BRA 0x10", "BRA.U UP0, 0x10", "@!UP2 BRA.U !UP1, 0x10"])
def test_main_loop_with_the_jumps_of_every_architecture(jump):
    loop = kernel(jump=jump).main_loop()
    assert len(loop.body) == 6
    assert loop.count("FADD") == 2 and loop.count("MUFU.EX2") == 1 and loop.count("LD") == 0
    assert loop.opcodes("LDG") == {"LDG.E.128": 1} and loop.opcodes("STG") == {"STG.E.128": 1}


def test_narrow_load_is_seen():
    loop = kernel(("LDG.E.U16 R16, desc[UR14][R30.64]", *MAIN_LOOP)).main_loop()
    assert loop.opcodes("LDG") == {"LDG.E.128": 1, "LDG.E.U16": 1}


@pytest.mark.parametrize("text", ["BAR.SYNC.DEFER_BLOCKING 0x0", "SHFL.BFLY PT, R3, R2, 0x10, 0x1f", "LDS R2, [UR4]"])
def test_exchange_between_threads_is_seen(text):
    assert kernel((*MAIN_LOOP, text)).main_loop().count(text.split(".")[0].split()[0]) == 1


@pytest.mark.parametrize(
    "text",
    [
        "DADD R2, R4, R6",
        "DFMA R2, R4, R6, R8",
        "DSETP.GEU.AND P0, PT, R2, R4, PT",
        "F2F.F64.F32 R4, R2",
        "F2F.F32.F64 R4, R2",
        "I2F.F64.S64 R4, R2",
        "F2I.F64.TRUNC R4, R2",
        "MUFU.RSQ64H R5, R3",
    ],
)
def test_float64_is_seen(text):
    assert kernel(tail=(text,)).float64() == [text.split()[0]]


@pytest.mark.parametrize(
    "text", ["DEPBAR.LE SB0, 0x1", "I2F.U64.RP R4, R2", "LDG.E.64 R4, desc[UR4][R2.64]", "MUFU.RCP R4, R2"]
)
def test_what_is_not_float64(text):
    assert kernel(tail=(text,)).float64() == []


@pytest.mark.parametrize("text", ["STL [R1+0x4], R7", "@P0 LDL.LU R7, [R1+0x4]"])
def test_spill_instruction_is_seen(text):
    assert kernel(tail=(text,)).spills() == [text.removeprefix("@P0 ").split()[0]]


def test_resources():
    assert Resources.parse(RESOURCES) == Resources(registers=56, stack_bytes=0, local_bytes=552)


def test_missing_main_loop_raises():
    with pytest.raises(ValueError, match="0 of 1 loops"):
        kernel(tuple(text.replace("LDG", "@P2 LDG") for text in MAIN_LOOP), jump="@P0 BRA 0x90").main_loop()


def test_two_main_loops_raise():
    with pytest.raises(ValueError, match="2 of 3 loops"):
        kernel(tail=("LDG.E R2, desc[UR4][R2.64]", "BRA 0xa0")).main_loop()


def test_jump_without_address_raises():
    with pytest.raises(ValueError, match="no address"):
        kernel(jump="@P0 BRA `(.L_x_3)").loops()


def test_unread_instruction_raises():
    with pytest.raises(ValueError, match="addresses"):
        disassembly("EXIT", "?!", "EXIT")


def test_no_instructions_raise():
    with pytest.raises(ValueError, match="0 instructions"):
        disassembly()


def test_other_than_one_kernel_raises():
    with pytest.raises(ValueError, match="2 kernels"):
        Resources.parse(RESOURCES + RESOURCES)
