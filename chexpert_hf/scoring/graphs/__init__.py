"""Models as graphs of ONNX Runtime and OpenVINO: conversion, quantisation, parity, cache and export."""
