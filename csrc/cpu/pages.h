// The pages of blocks. Huge ones spare nearly all page faults, and kernels that only stream run a third faster on them;
// but the host of a virtual machine may have no memory behind them yet, and takes five times as long to give them as
// small ones take.
#pragma once

#include <cstddef>

namespace snnfast::pages {

// Asks for huge pages of a block that nothing was written to; false: the system was seen to be slow to give them.
bool prefer_huge(void* data, std::size_t bytes);

// Makes the pages of a block in use huge, where Linux can. Where it is slow, that takes as long as is saved when the
// block has been used so many times.
void make_huge(void* data, std::size_t bytes);
inline constexpr int kUsesWorthIt = 64;

}  // namespace snnfast::pages
