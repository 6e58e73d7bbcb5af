"""Models as graphs for ONNX Runtime and OpenVINO: conversion, quantisation, check against the model, cache, export."""
