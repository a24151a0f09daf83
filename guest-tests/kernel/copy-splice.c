// SPDX-License-Identifier: GPL-2.0
/*
 * What if splice copied? With this module in, filemap_splice_read() and shmem_file_splice_read() are copy_splice_read():
 * a file's pages no longer go to the pipe themselves, they are read into new ones. That is what a patch of the kernel's would do
 * that was discussed in June 2026; on a stock kernel, for the guest of an experiment only.
 *
 * Operation: ftrace calls to_copy() where one of these functions begins, before its first instruction; the callback has the CPU
 * go on in copy_splice_read(), whose arguments are the same. Taken out, the module leaves the kernel as it was.
 */
#include <linux/fs.h>
#include <linux/ftrace.h>
#include <linux/module.h>
#include <linux/string.h>

static const char *const redirected[] = { "filemap_splice_read", "shmem_file_splice_read" };

static void notrace to_copy(unsigned long ip, unsigned long parent, struct ftrace_ops *ops, struct ftrace_regs *regs)
{
	ftrace_regs_set_instruction_pointer(regs, (unsigned long)copy_splice_read);
}

static struct ftrace_ops ops = {
	.func = to_copy,
	.flags = FTRACE_OPS_FL_IPMODIFY | FTRACE_OPS_FL_DYNAMIC,
};

static int __init copy_splice_init(void)
{
	size_t i;
	int error = 0;

	for (i = 0; i < ARRAY_SIZE(redirected) && !error; i++)
		error = ftrace_set_filter(&ops, (unsigned char *)redirected[i], strlen(redirected[i]), 0);
	/* With an empty filter every function would be redirected: none is, unless each was found. */
	if (!error)
		error = register_ftrace_function(&ops);
	if (error)
		ftrace_free_filter(&ops);
	return error;
}

static void __exit copy_splice_exit(void)
{
	unregister_ftrace_function(&ops);
	ftrace_free_filter(&ops);
}

module_init(copy_splice_init);
module_exit(copy_splice_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("What if splice copied: filemap_splice_read and shmem_file_splice_read become copy_splice_read");
