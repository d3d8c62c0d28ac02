// The memory of a cache: pages below `resident` in anonymous memory, those from there on in a file, in one range of
// addresses, so that kernels need not know.
#pragma once
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <system_error>
#include <vector>

#include "memory.h"

namespace deepseek {

constexpr size_t kMapBytes = 4096;  // what a mapping begins at a multiple of

// Where pages lie that do not stay in memory. Without a file all of them do.
struct Spill {
  int file = -1;      // its room must be allocated: what is not there when it is written ends the process
  int resident = 0;   // pages in memory; their bytes in each array must be a multiple of kMapBytes
};

// One array of a layer: `bytes` for each page, one after another.
struct PageArray {
  char* base;
  size_t bytes;
  bool spilled;  // pages from `resident` on lie in the file; otherwise all are in memory
};

// Four chains, so that they overlap. A step is a bijection of the chain for fixed words and of the word for a fixed chain,
// and so is what joins the chains: a change within one word is always seen, any other one but for 2^-64.
class Checksum {
 public:
  void add(const char* data, size_t bytes) {  // a multiple of 32
    for (size_t i = 0; i < bytes; i += 32) {
      uint64_t words[4];
      std::memcpy(words, data + i, 32);
      for (int j = 0; j < 4; ++j) chains_[j] = mix(chains_[j] ^ words[j]);
    }
  }
  uint64_t value() const {
    uint64_t all = 0;
    for (const uint64_t chain : chains_) all = mix(all ^ chain);
    return all;
  }

 private:
  static uint64_t mix(uint64_t x) {
    x *= 0x9e3779b97f4a7c15u;  // odd
    return x ^ x >> 29;
  }
  uint64_t chains_[4] = {1, 2, 3, 4};
};

class KvStore {
 public:
  KvStore() = default;
  KvStore(int pages, const Spill& spill) : pages_(pages), spill_(spill) {}
  int pages() const { return pages_; }

  // Bytes between the arrays' beginnings must be multiples of this.
  size_t alignment() const { return spill_.file < 0 ? 1 : kMapBytes; }
  void add(const PageArray& array) { arrays_.push_back(array); }
  void clear() { arrays_.clear(); }

  // Bytes that the file must have.
  size_t file_bytes() const {
    size_t bytes = 0;
    for (const PageArray& array : arrays_) bytes += array.spilled ? mapped(array) : 0;
    return bytes;
  }

  // Puts the file in its place. The memory's owner takes it away again with the whole range.
  void map() {
    if (spill_.file < 0) return;
    struct stat status {};
    if (fstat(spill_.file, &status) != 0) throw std::system_error(errno, std::generic_category(), "looking at the spill file");
    if (static_cast<size_t>(status.st_size) < file_bytes()) throw std::invalid_argument("the spill file is too small");
    off_t offset = 0;
    for (const PageArray& array : arrays_) {
      if (!array.spilled) continue;
      char* begin = array.base + array.bytes * static_cast<size_t>(spill_.resident);
      if (reinterpret_cast<uintptr_t>(begin) % kMapBytes != 0) throw std::invalid_argument("resident pages do not end at a mapping's edge");
      const size_t bytes = mapped(array);
      if (mmap(begin, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, spill_.file, offset) == MAP_FAILED) {
        throw std::system_error(errno, std::generic_category(), "mapping the spill file");
      }
      madvise(begin, bytes, MADV_RANDOM);  // a few tokens of a page are read, not what lies behind them
      offset += static_cast<off_t>(bytes);
    }
  }

  // Copies all that is known of a page, in all layers.
  void copy_page(int from, int to) {
    check(from);
    check(to);
    if (from == to) return;
    for (const PageArray& array : arrays_) std::memcpy(at(array, to), at(array, from), array.bytes);
  }

  // Of what lies in the file of a page, or would if it were there.
  uint64_t checksum(int page) const {
    check(page);
    Checksum sum;
    for (const PageArray& array : arrays_) {
      if (array.spilled) sum.add(at(array, page), array.bytes);
    }
    return sum.value();
  }

 private:
  size_t mapped(const PageArray& array) const {
    const size_t bytes = array.bytes * static_cast<size_t>(std::max(0, pages_ - spill_.resident));
    return (bytes + kMapBytes - 1) / kMapBytes * kMapBytes;
  }
  char* at(const PageArray& array, int page) const { return array.base + array.bytes * static_cast<size_t>(page); }
  void check(int page) const {
    if (page < 0 || page >= pages_) throw std::out_of_range("no such page");
  }

  std::vector<PageArray> arrays_;
  int pages_ = 0;
  Spill spill_;
};

}  // namespace deepseek
