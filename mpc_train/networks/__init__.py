"""Networks as data: conversion of a torch module to a graph, which runs over shares and in the
clear."""
