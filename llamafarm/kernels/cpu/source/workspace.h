// Memory that a thread keeps from call to call.
#pragma once

#include <cstdint>
#include <vector>

namespace farm {

inline int64_t up_to(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// Memory of a thread, which stays with it: pages that are asked for anew cost more than a pass over them.
class Workspace {
   public:
    template <typename Kind>
    static Kind* take(int slot, int64_t count) {
        thread_local std::vector<char> held[8];
        if (int64_t(held[slot].size()) < count * int64_t(sizeof(Kind)) + 64)
            held[slot].resize(count * sizeof(Kind) + 64);
        auto start = reinterpret_cast<uintptr_t>(held[slot].data());
        return reinterpret_cast<Kind*>((start + 63) / 64 * 64);
    }
};

}  // namespace farm
