// The number of the C interface. Whoever changes the arguments or the meaning of an exported function raises it, here
// and in loading.py: a library left over from before is then refused instead of called wrongly.
#pragma once
#define FEWFIRE_ABI 1
