// libstdc++ asks glibc 2.32 and newer whether the process has one thread alone, to count references without atomics.
// Defined here it says no, and the wheel loads with older ones too.
extern "C" [[gnu::visibility("hidden")]] const char __libc_single_threaded = 0;
