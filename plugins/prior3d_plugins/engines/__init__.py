"""The engines that come with prior3d, one file each: a numerical job on one kind of device."""
