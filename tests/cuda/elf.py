# SPDX-License-Identifier: Apache-2.0
"""Kernels of a cubin, an ELF file, and the instructions that they are made of."""
import struct

# The low 12 bits of an instruction of sm_80 and sm_90.
OPCODES = {0x9F0: "HGMMA", 0xDF0: "HGMMA", 0x23C: "HMMA", 0x83B: "LDSM", 0x308: "MUFU", 0x983: "LDL", 0x387: "STL"}


def instructions(cubin):
    """By mangled name, the opcodes of a kernel: names of OPCODES, "" for others."""
    data = cubin.read_bytes()
    offset, = struct.unpack_from("<Q", data, 0x28)
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", data, offset + i * size) for i in range(count)]
    strings = sections[names][4]
    kernels = {}
    for name, _, _, _, begin, length in sections:
        text = data[strings + name:data.index(b"\0", strings + name)].decode()
        if text.startswith(".text."):
            kernels[text[len(".text."):]] = [
                OPCODES.get(struct.unpack_from("<Q", data, begin + i)[0] & 0xFFF, "") for i in range(0, length, 16)]
    return kernels
