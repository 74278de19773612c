"""Reads a disassembled kernel: its instructions, its loops, and what a loop costs."""

import re
from collections import Counter
from dataclasses import dataclass

_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*?)\s*;", re.MULTILINE)
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_JUMP = re.compile(r"BRA(\.|$)")
_TARGET = re.compile(r"\b0x([0-9a-f]+)$")
_FLOAT64 = re.compile(r"D(ADD|MUL|FMA|SETP|MNMX|MMA)\b|.*\.F64\b|.*64H\b")


@dataclass(frozen=True)
class Instruction:
    """One line: `/*0a10*/ @!P0 BRA.U 0x1f60 ;` has address 0x0a10, guard "@!P0" and operands "0x1f60"."""

    address: int
    guard: str | None
    opcode: str
    operands: str


@dataclass(frozen=True)
class Loop:
    """The instructions from the target of a backward jump to the jump."""

    body: tuple[Instruction, ...]

    def count(self, opcode: str) -> int:
        """Instructions `opcode`, with any modifiers: "LDG" counts LDG.E.128."""
        return sum(x.opcode == opcode or x.opcode.startswith(opcode + ".") for x in self.body)

    def opcodes(self, opcode: str) -> Counter:
        """How often each form of `opcode` occurs."""
        return Counter(x.opcode for x in self.body if x.opcode.split(".")[0] == opcode)

    def loads_unmasked(self) -> bool:
        """Whether it reads global memory, never under a condition."""
        loads = [x for x in self.body if x.opcode.startswith("LDG")]
        return bool(loads) and all(x.guard is None for x in loads)


@dataclass(frozen=True)
class Resources:
    """What one thread of a kernel takes."""

    registers: int
    stack_bytes: int
    local_bytes: int

    @classmethod
    def parse(cls, text: str) -> "Resources":
        """From the output of `cuobjdump -res-usage`. Raises ValueError unless that is of one kernel."""
        found = _RESOURCES.findall(text)
        if len(found) != 1:
            raise ValueError(f"the text states the resources of {len(found)} kernels; it must be of one.")
        registers, stack, _, local = map(int, found[0])
        return cls(registers, stack, local)


@dataclass(frozen=True)
class Disassembly:
    """The instructions of one kernel."""

    instructions: tuple[Instruction, ...]

    @classmethod
    def parse(cls, text: str) -> "Disassembly":
        """From the output of `cuobjdump -sass`. Raises ValueError unless it was understood line by line."""
        instructions = tuple(
            Instruction(int(address, 16), guard or None, opcode, operands)
            for address, guard, opcode, operands in _INSTRUCTION.findall(text)
        )
        # An instruction is 16 bytes: a gap is a line that was not understood.
        if not instructions or [x.address for x in instructions] != list(range(0, 16 * len(instructions), 16)):
            raise ValueError(f"{len(instructions)} instructions were read, but their addresses are not 0, 16, 32, ...")
        return cls(instructions)

    def loops(self) -> list[Loop]:
        """Every loop, but the empty one that pads the end of a kernel. Raises ValueError for a jump without target."""
        loops = []
        for position, jump in enumerate(self.instructions):
            if not _JUMP.match(jump.opcode):
                continue
            target = _TARGET.search(jump.operands)
            if target is None:
                raise ValueError(f"at {jump.address:#x}: {jump.opcode} {jump.operands} has no address to jump to.")
            start = int(target[1], 16) // 16
            if start < position:
                loops.append(Loop(self.instructions[start : position + 1]))
        return loops

    def main_loop(self) -> Loop:
        """The one loop that loads without a condition: over whole blocks of columns. Raises ValueError without it."""
        found = [loop for loop in self.loops() if loop.loads_unmasked()]
        if len(found) != 1:
            raise ValueError(f"{len(found)} of {len(self.loops())} loops load without a condition; it must be one.")
        return found[0]

    def float64(self) -> list[str]:
        """The opcodes that compute in float64, or convert to or from it."""
        return sorted({x.opcode for x in self.instructions if _FLOAT64.match(x.opcode)})

    def spills(self) -> list[str]:
        """The opcodes that move registers to memory of the thread and back."""
        return sorted({x.opcode for x in self.instructions if x.opcode.split(".")[0] in ("LDL", "STL")})
